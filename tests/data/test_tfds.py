"""Records against the plain folders they were made of: batches, metrics, plans, and leaks."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import record_data
import tensorflow_datasets as tfds
from helpers import ROOT
from inputs import making
from PIL import Image
from record_data import SPLITS, VOC_CLASSES, coco_folder, stock_coco, tfrecord_copy, voc_folder

from crnas_jax import cli
from crnas_jax.data import loader, masks
from crnas_jax.data.build import DataOptions, detection_source, detection_sources
from crnas_jax.data.checks import require_consistent
from crnas_jax.data.records import split as record_split
from crnas_jax.data.records import tfrecord
from crnas_jax.data.records.folder import Examples, RecordFolder
from crnas_jax.data.source import DetectionSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import METRICS
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.predict_split import split_metrics
from crnas_jax.runtime import team

SIZE = ImageSize(48, 80)


def prepare(dataset, source, output, *flags):
    command = ["prepare-data", f"--dataset={dataset}", f"--source={source}", f"--output={output}"]
    assert cli.main([*command, *flags]) == 0
    return output


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return by layout the plain folder's options, those of its records, and of their copy."""
    work = tmp_path_factory.mktemp("records")
    coco, voc = coco_folder(work / "coco"), voc_folder(work / "voc")
    flags = [f"--split={split}={split}.json:images" for split in SPLITS]
    flags.append("--shard_mb=1")
    prepare("coco", coco, work / "coco-records", *flags)
    text = {split: f"VOC2012/{split}+VOC2007/{split}" for split in SPLITS}
    flags = [f"--split={split}={text[split]}" for split in SPLITS]
    prepare("voc", voc, work / "voc-records", *flags, f"--class_names={','.join(VOC_CLASSES)}")
    options = {"coco": [], "voc": []}
    plain = {
        "coco": DataOptions("coco", str(coco), train="train.json", val="val.json", test="val.json"),
        "voc": DataOptions("voc", str(voc), **text, test="", class_names=VOC_CLASSES),
    }
    for name in options:
        copy = tfrecord_copy(work / f"{name}-records", work / f"{name}-tfrecords")
        prepare("tfrecord", copy, work / f"{name}-again")
        options[name] = [plain[name]] + [
            DataOptions("tfds", str(work / f"{name}-{kind}"), train="train", val="val", test="val")
            for kind in ("records", "again")
        ]
    return options | {"work": work}


def _sources(options, with_masks=False):
    return {split: detection_source(options, split, with_masks) for split in SPLITS}


def _batches(source, rows, epochs):
    plan = loader.Plan(source.sizes, 4, seed=5)
    return list(loader.batches(source, plan, rows, 5, 0, plan.num_steps(epochs)))


@pytest.mark.parametrize("layout", ["coco", "voc"])
@pytest.mark.parametrize("kind", [1, 2], ids=["records", "tfrecords"])
def test_records_give_the_plain_folders_batches(folders, layout, kind, monkeypatch):
    with_masks = layout == "coco"
    plain = _sources(folders[layout][0], with_masks)
    records = _sources(folders[layout][kind], with_masks)
    rows = DetectionRows(SIZE, 3, flip=True, mask_size=14 if with_masks else 0)
    for split in SPLITS:
        assert isinstance(records[split], DetectionSource)
        expected = _batches(plain[split], rows, 2)
        for actual, batch in zip(_batches(records[split], rows, 2), expected, strict=True):
            for name, values in batch.items():
                np.testing.assert_array_equal(actual[name], values, err_msg=name)
    for host in (0, 1):  # each of two processes reads its half of the same batches
        with monkeypatch.context() as patch:
            patch.setattr(team, "_team", types.SimpleNamespace(index=host, count=2))
            half = _batches(records["val"], rows, 2)
        for part, batch in zip(half, expected, strict=True):
            own = slice(2 * host, 2 * host + 2)
            assert part["image_id"].tolist() == batch["image_id"][own].tolist()
            np.testing.assert_array_equal(part["image"], batch["image"][own])


def _detections(source, seed=0):
    """Return detections near the objects, for metrics that are neither 0 nor 1."""
    rng = np.random.default_rng(seed)
    results = []
    for entry in sorted(source.coco["annotations"], key=lambda entry: entry["id"]):
        for _ in range(2):
            box = (np.array(entry["bbox"]) + rng.normal(0, 1.0, 4)).tolist()
            result = {"image_id": entry["image_id"], "category_id": entry["category_id"]}
            results.append({**result, "bbox": box, "score": rng.uniform()})
            if "segmentation" in entry:
                height, width = source.sizes[source.image_ids.tolist().index(entry["image_id"])]
                mask = np.zeros((height, width), bool)
                x, y, w, h = np.maximum(box, 0).astype(int).tolist()
                mask[y : y + h, x : x + w // 2] = True
                results[-1]["segmentation"] = masks.encode(mask)
    return results


@pytest.mark.parametrize("layout", ["coco", "voc"])
@pytest.mark.parametrize("kind", [1, 2], ids=["records", "tfrecords"])
def test_metrics_and_plans_are_the_plain_folders(folders, layout, kind):
    with_masks = layout == "coco"
    plain = _sources(folders[layout][0], with_masks)
    records = _sources(folders[layout][kind], with_masks)
    assert require_consistent(records) == require_consistent(plain)
    for split in SPLITS:
        ours, theirs = records[split], plain[split]
        assert (ours.metrics, ours.ignore_fields) == (theirs.metrics, theirs.ignore_fields)
        assert (ours.category_ids, ours.class_names) == (theirs.category_ids, theirs.class_names)
        assert ours.image_ids.tolist() == theirs.image_ids.tolist()
        results = _detections(theirs)
        metrics = split_metrics(theirs, results, with_masks)
        assert 0 < metrics["AP"] < 1
        assert split_metrics(ours, results, with_masks) == metrics
        truth, expected = (GroundTruth.from_source(source) for source in (ours, theirs))
        np.testing.assert_array_equal(truth.num_counted, expected.num_counted)
        assert ours.digest == _sources(folders[layout][3 - kind])[split].digest


def test_stock_features_give_equal_pixels_ids_and_crowds(folders, tmp_path):
    coco = folders["work"] / "coco"
    folder = stock_coco(tmp_path / "stock", coco)
    options = DataOptions("tfds", str(folder), train="train", val="val", test="val", exif="shown")
    records, plain = _sources(options), _sources(folders["coco"][0])
    for split in SPLITS:
        ours, theirs = records[split], plain[split]
        assert ours.class_names == theirs.class_names
        assert ours.image_ids.tolist() == theirs.image_ids.tolist()
        for row in range(len(ours)):
            record, expected = ours[row], theirs[row]
            np.testing.assert_array_equal(record["image"], expected["image"])
            if len(record["boxes"]) < len(expected["boxes"]):
                continue  # TFDS refuses boxes that reach out
            assert record["crowd"].tolist() == expected["crowd"].tolist()
            assert record["labels"].tolist() == expected["labels"].tolist()
            np.testing.assert_allclose(record["boxes"], expected["boxes"], atol=1e-3)
            assert (abs(record["area"] - expected["area"]) < 1).all()
    assert any("whole numbers" in note for note in records["train"].notes())


def test_real_photographs_in_records_of_ours_and_of_tfds(shared_data, tmp_path):
    folder = shared_data / "coco200"
    flags = [f"--split={split}={split}.json:images" for split in SPLITS]
    records = prepare("coco", folder, tmp_path / "records", *flags, "--shard_mb=8")
    stock = stock_coco(tmp_path / "stock", folder)
    plain = DataOptions("coco", str(folder), train="train.json", val="val.json")
    plain, ours, theirs = (
        detection_source(options, "val", with_masks)
        for options, with_masks in (
            (plain, True),
            (DataOptions("tfds", str(records), val="val"), True),
            (DataOptions("tfds", str(stock), val="val"), False),
        )
    )
    results = _detections(plain)
    expected = split_metrics(plain, results, with_masks=True)
    assert split_metrics(ours, results, with_masks=True) == expected
    label_of = {category: label for label, category in enumerate(plain.category_ids, 1)}
    results = [{**row, "category_id": label_of[row["category_id"]]} for row in results]
    metrics = split_metrics(theirs, results)
    for name in METRICS:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-3), name
    rows = DetectionRows(ImageSize(200, 333), 20, flip=True, mask_size=28)
    batches = (_batches(source, rows, 0.3) for source in (plain, ours))
    for batch, actual in zip(*batches, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(actual[name], values, err_msg=name)
    for row in range(10):
        np.testing.assert_array_equal(theirs[row]["image"], plain[row]["image"])
        np.testing.assert_allclose(theirs[row]["boxes"], plain[row]["boxes"], atol=1e-3)
        assert theirs[row]["crowd"].tolist() == plain[row]["crowd"].tolist()


def test_a_part_of_a_split_and_the_union_of_two(folders):
    work, whole = folders["work"], _sources(folders["coco"][1])["train"]
    folder = str(work / "coco-records")

    def ids(spec):
        return detection_source(DataOptions("tfds", folder, train=spec), "train").image_ids.tolist()

    parts = ids("train[:40%]"), ids("train[40%:]")
    assert sorted(parts[0] + parts[1]) == whole.image_ids.tolist()
    assert min(map(len, parts)) > 3
    assert len(ids("train+val")) == 18
    for spec in ("train+train[:1]", "train[:3]+train[2:]"):
        with pytest.raises(UserError, match="holds records twice"):
            ids(spec)
    for spec in ("validation", "train[5:2]", "train[90%:10%]", "train[", "", "train[:99]"):
        with pytest.raises(UserError, match=r"is no split of .* there are train, val"):
            ids(spec)
    overlapping = DataOptions("tfds", folder, train="train", val="train[:2]", test="val")
    with pytest.raises(UserError, match="is in train too"):
        require_consistent(detection_sources(overlapping))


def test_a_copied_image_is_found_among_records(folders, tmp_path):
    coco = coco_folder(tmp_path / "coco")
    (coco / "images" / "val-0.jpg").write_bytes((coco / "images" / "train-6.jpg").read_bytes())
    content = json.loads((coco / "train.json").read_text())
    sizes = {i["file_name"]: (i["height"], i["width"]) for i in content["images"]}
    val = json.loads((coco / "val.json").read_text())
    for image in val["images"]:
        if image["file_name"] == "val-0.jpg":
            image["height"], image["width"] = sizes["train-6.jpg"]
    (coco / "val.json").write_text(json.dumps(val))
    flags = [f"--split={split}={split}.json:images" for split in SPLITS]
    records = prepare("coco", coco, tmp_path / "records", *flags)
    options = DataOptions("tfds", str(records), train="train", val="val")
    with pytest.raises(UserError, match=r"train-6\.jpg.*the same image as .*val-0\.jpg.* in val"):
        require_consistent(_sources(options))


def test_an_index_of_others_is_made_once_and_read_again(folders, tmp_path, capsys, monkeypatch):
    folder = stock_coco(tmp_path / "stock", folders["work"] / "coco")
    options = DataOptions("tfds", str(folder), train="train", val="val", exif="shown")
    keep_in = tmp_path / "records"
    first = detection_source(options, "train", keep_in=keep_in)
    assert "reading all records once" in capsys.readouterr().out
    assert not keep_in.exists()
    part = DataOptions("tfds", str(folder), train="train[:3]", exif="shown")
    assert len(detection_source(part, "train", keep_in=keep_in)) == 3
    assert capsys.readouterr().out == ""  # the same split: not read again
    first.keep_index()
    record_split._scanned.clear()
    again = detection_source(options, "train", keep_in=keep_in)
    assert capsys.readouterr().out == ""
    assert again.digest == first.digest
    np.testing.assert_array_equal(again[3]["image"], first[3]["image"])


def test_an_index_of_others_follows_what_features_json_says(folders, tmp_path):
    folder, keep_in = stock_coco(tmp_path / "stock", folders["work"] / "coco"), tmp_path / "kept"
    options = DataOptions("tfds", str(folder), train="train")
    before = detection_source(options, "train", keep_in=keep_in)
    before.keep_index()
    content = (folder / "features.json").read_text()
    assert "REL_YXYX" in content
    (folder / "features.json").write_text(content.replace("REL_YXYX", "REL_XYXY"))
    after = detection_source(options, "train", keep_in=keep_in)
    assert after.digest != before.digest
    assert (after[0]["boxes"] != before[0]["boxes"]).any()


_EVIL = {"pythonClassName": "evil_feature.Feature", "tensor": {"dtype": "int64"}}
_LEGACY = {"type": "evil_feature.Feature", "content": {}}
_TRUSTED = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "feature",
    [
        _EVIL,
        {"python_class_name": _EVIL["pythonClassName"], "tensor": {}},
        _LEGACY,
        {"pythonClassName": _TRUSTED, "jsonFeature": {"json": json.dumps({"x": _LEGACY})}},
        {**_LEGACY, "proto_cls": "tensorflow_datasets.TensorFeature", "content": "{}"},
        {**_EVIL, "pythonClassName": "tensorflow_datasets.core.features...evil_feature.Feature"},
    ],
)
def test_no_feature_is_imported_from_elsewhere(folders, tmp_path, monkeypatch, feature):
    (tmp_path / "evil_feature.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("records", "tfrecords"):
        folder = tmp_path / kind
        shutil.copytree(folders["work"] / f"coco-{kind}", folder)
        content = json.loads((folder / "features.json").read_text())
        content["featuresDict"]["features"]["image/id"] = feature
        (folder / "features.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"features\.json: "):
            RecordFolder(folder) if kind == "records" else tfrecord.data_set(folder)
        assert "evil_feature" not in sys.modules


@pytest.mark.parametrize("kind", ["records", "tfrecords"])
@pytest.mark.parametrize("name", ["../../x", "a/b", "", "split"])
def test_names_of_data_sets_and_splits_stay_in_the_folder(folders, tmp_path, kind, name):
    folder = tmp_path / kind
    shutil.copytree(folders["work"] / f"coco-{kind}", folder)
    content = json.loads((folder / "dataset_info.json").read_text())
    if name == "split":
        content["splits"][0]["name"] = "../../evil"
    else:
        content["name"] = name
    (folder / "dataset_info.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"name|does not load"):
        RecordFolder(folder) if kind == "records" else tfrecord.data_set(folder)


def test_records_of_tfds_are_read_after_conversion(folders, tmp_path):
    stock = stock_coco(tmp_path / "stock", folders["work"] / "coco")
    copy = tfrecord_copy(stock, tmp_path / "copy")
    again = prepare("tfrecord", copy, tmp_path / "again")
    options = [DataOptions("tfds", str(folder), train="train") for folder in (stock, again)]
    plain, converted = (detection_source(option, "train") for option in options)
    assert converted.notes() == plain.notes()
    assert list(converted.coco["annotations"]) == list(plain.coco["annotations"])
    for row in range(len(plain)):
        np.testing.assert_array_equal(converted[row]["image"], plain[row]["image"])


@pytest.mark.parametrize("kind", ["image", "text", "tensor"])
def test_masks_of_others(tmp_path, kind):
    rng, shape, mask = np.random.default_rng(0), (40, 50, 1), np.zeros((40, 50), np.uint8)
    mask[5:20, 10:30] = 255
    encoded, content = io.BytesIO(), io.BytesIO()
    Image.fromarray(mask).save(encoded, "PNG")
    record_data.pixels(rng, 40, 50).save(content, "JPEG", exif=making.exif_of(6))
    feature, value = {
        "image": (tfds.features.Image(shape=(None, None, 1)), encoded),
        "text": (tfds.features.Text(), json.dumps([[10, 5, 30, 5, 30, 20, 10, 20]])),
        "tensor": (tfds.features.Tensor(shape=shape, dtype=np.uint8), mask[..., None]),
    }[kind]
    features = {
        "image": tfds.features.Image(),
        "objects": tfds.features.Sequence(
            {
                "label": tfds.features.ClassLabel(names=["cell"]),
                "bbox": tfds.features.BBoxFeature(bbox_format="XYWH"),
                "segmentation": feature,
            }
        ),
    }
    encoded.seek(0)
    content.seek(0)
    objects = [{"label": 0, "bbox": np.array([10.0, 5.0, 20.0, 15.0]), "segmentation": value}]
    examples = {"train": [{"image": content, "objects": objects}]}
    folder = record_data.prepared(tmp_path, features, examples)
    options = DataOptions("tfds", str(folder), train="train")
    source = detection_source(options, "train", with_masks=True)
    (segmentation,) = source[0]["segmentations"]
    crop = masks.crop(segmentation, source[0]["boxes"][0], 10)
    assert crop.all()
    (annotation,) = source.coco["annotations"]
    assert dict(annotation)["segmentation"] == segmentation
    assert source.image_ids.tolist() == [1]
    options = dataclasses.replace(options, exif="shown")
    with pytest.raises(UserError, match="masks of photographs that EXIF turns"):
        detection_source(options, "train", with_masks=True)


def test_plans_and_metrics_of_boxes_read_no_record(folders, monkeypatch):
    sources = _sources(folders["coco"][1], with_masks=True)
    monkeypatch.setattr(Examples, "__getitem__", None)
    require_consistent(sources)
    GroundTruth.from_source(sources["val"])


def test_tensorflow_is_not_imported(folders):
    script = f"""
import sys
from crnas_jax import cli
flags = ["--config.data.name=tfds", "--config.data.folder={folders["work"] / "coco-records"}"]
flags += ["--config.data.train=train", "--config.data.val=val[:3]", "--config.data.test=val[3:]"]
status = cli.main(["plan", "--config=configs/bccd.py", *flags, "--workdir=none"])
copy = "{folders["work"] / "voc-tfrecords"}"
sys.argv = ["--dataset=tfrecord", "--source=" + copy, "--output={folders["work"] / "third"}"]
status += cli.main(["prepare-data", *sys.argv])
names = [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "tf_keras", "keras")]
assert (status, names) == (0, []), names
"""
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "3 classes" in run.stdout


def test_voc_of_tfds_itself_counts_pixels_from_1(tmp_path):
    features = {
        "image": tfds.features.Image(),
        "image/filename": tfds.features.Text(),
        "objects": tfds.features.Sequence(
            {
                "label": tfds.features.ClassLabel(names=["cell"]),
                "bbox": tfds.features.BBoxFeature(),
                "is_difficult": np.bool_,
            }
        ),
    }
    rng, images = np.random.default_rng(0), {}
    for name in ("b.jpg", "a.jpg"):
        images[name] = io.BytesIO()
        record_data.pixels(rng, 40, 50).save(images[name], "JPEG")
        images[name].seek(0)
    box = tfds.features.BBox(3 / 40, 2 / 50, 8 / 40, 6 / 50)  # ymin 3, xmin 2, ymax 8, xmax 6
    objects = [{"label": 0, "bbox": box, "is_difficult": True}]
    examples = [
        {"image": image, "image/filename": name, "objects": objects if name == "a.jpg" else []}
        for name, image in images.items()
    ]
    folder = record_data.prepared(tmp_path, features, {"train": examples}, "voc")
    info = json.loads((folder / "dataset_info.json").read_text())
    info["moduleName"] = "tensorflow_datasets.object_detection.voc"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    source = detection_source(DataOptions("tfds", str(folder), train="train"), "train")
    assert source.metrics == ("coco", "voc")
    assert source.image_ids.tolist() == [1, 2]  # by name
    np.testing.assert_allclose(source[0]["boxes"], [[1, 2, 6, 8]], atol=1e-4)
    assert source[0]["crowd"].tolist() == [True]
    (annotation,) = source.coco["annotations"]
    assert (annotation["difficult"], annotation["iscrowd"]) == (1, 0)
    assert annotation["area"] == pytest.approx(30, abs=1e-3)
