"""Data in TFDS's layout, the archives it is made of, and TFRecords."""

import io
import json
import shutil
import zipfile
import zlib

import numpy as np
import record_data
import tensorflow_datasets as tfds
from inputs import making
from inputs.making import MASKS, SPLITS, H, W, good, read, write

from crnas_jax.data.records.folder import FEATURES, INFO
from crnas_jax.data.records.originals import open_original
from crnas_jax.data.records.writer import prepare

case = making.cases("records")
RECORDS = ("--config.data.name=tfds", *(f"--config.data.{split}={split}" for split in SPLITS))
record_case = making.cases("records", flags=RECORDS)
archive_case = making.cases("records", command="prepare-data")


def records(folder, change=None):
    """Write the good data set as records."""
    coco = good(folder.with_name("coco"), change)
    splits = {split: f"{split}.json:images" for split in SPLITS}
    prepare(open_original("coco", coco, splits), folder)
    return folder


def others(folder, objects=None, features=None, **fields):
    """Write records as a builder of somebody else does: relative boxes, no ids of objects.

    Args:
      folder: receives the records.
      objects: changed fields of the first object of `train`.
      features: further features of objects.
      fields: changed fields of the first image of `train`.
    """
    coco, examples = good(folder.with_name("coco")), {}
    for split in SPLITS:
        examples[split] = []
        known = dict.fromkeys(features or {}, 3)
        for image in read(coco, split)["images"]:
            content = (coco / "images" / image["file_name"]).read_bytes()
            x, y, w, h = making.BOX
            box = tfds.features.BBox(y / H, x / W, (y + h) / H, (x + w) / W)
            first = {"bbox": box, "label": 0, **known}
            example = {"image": io.BytesIO(content), "image/id": image["id"], "objects": [first]}
            examples[split].append(example)
    examples["train"][0].update(fields)
    examples["train"][0]["objects"][0].update(objects or {})
    of_objects = {
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=["cell"]),
        **(features or {}),
    }
    every = {
        "image": tfds.features.Image(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(of_objects),
    }
    prepared = record_data.prepared(folder.with_name("tfds"), every, examples)
    shutil.move(prepared, folder)
    return folder


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def shards(folder):
    return sorted(folder.glob("*array_record*"))


def boxes_fit(folder):
    options = {"name": "tfds"} | {split: split for split in SPLITS}
    from crnas_jax.data.build import DataOptions, detection_source

    record = detection_source(DataOptions(folder=str(folder), **options), "train")[0]
    x0, y0, x1, y1 = record["boxes"][0].round().astype(int)
    assert (record["image"][y0:y1, x0:x1, 0] > 128).mean() > 0.95


@record_case("records of `prepare-data`", happens="accepted as it is", check=boxes_fit)
def own_records(folder):
    records(folder)


@record_case(
    "records that TFDS's own machinery has prepared",
    happens="accepted, after all records are read once; the plan says what they lack",
    says="objects have no is_crowd: none is taken for a crowd",
    check=boxes_fit,
)
def records_of_others(folder):
    others(folder)


@record_case(
    "areas that TFDS has cut to whole numbers",
    happens="accepted, the plan says so",
    says="areas are whole numbers in these records",
)
def whole_areas(folder):
    others(folder, {"area": 3}, {"area": np.int64})


@record_case(
    "a folder of TFRecords, TFDS's default",
    refused="'tfrecord' has no random access; convert it: crnas-jax prepare-data --dataset=tf",
    report="https://github.com/tensorflow/datasets/issues/5100",
)
def tfrecords(folder):
    record_data.tfrecord_copy(records(folder.with_name("records")), folder)


@record_case(
    "the folder above that of the version",
    refused="dataset_info.json: file: No such file or directory; give ",
)
def folder_above(folder):
    records(folder / "1.0.0")


@record_case("a split that is not there", refused="'train' is no split of ")
def no_split(folder):
    splits = {"other": "train.json:images"}
    prepare(open_original("coco", good(folder.with_name("coco")), splits), folder)


@record_case(
    "a feature whose class would have to be imported",
    refused="features.json: pythonClassName: 'os.path.Feature' is no feature of TFDS",
)
def foreign_class(folder):
    def change(features):
        features["featuresDict"]["features"]["image"]["pythonClassName"] = "os.path.Feature"

    change_json(records(folder) / FEATURES, change)


def _change_bbox(folder, change):
    def change_all(features):
        objects = features["featuresDict"]["features"]["objects"]["sequence"]["feature"]
        change(objects["featuresDict"]["features"]["bbox"]["boundingBox"])

    change_json(others(folder) / FEATURES, change_all)


@record_case("boxes in a format that TFDS does not have", refused="'CXCYWH' is not a valid BBoxFo")
def unknown_format(folder):
    _change_bbox(folder, lambda box: box.update(bboxFormat="CXCYWH"))


@record_case(
    "boxes whose format nothing tells",
    refused="objects/bbox: it has no bboxFormat; add one of XYXY, YXYX, XYWH, REL_XYXY, REL_YXYX",
)
def no_format(folder):
    _change_bbox(folder, lambda box: box.pop("bboxFormat"))


@record_case("records without objects", refused="objects: missing, or no sequence of objects")
def no_objects(folder):
    data = record_data.class_folder(folder.with_name("classes"), 3)
    splits = dict.fromkeys(SPLITS, "train")
    prepare(open_original("imagenet", data, splits), folder)


@record_case("a shard that is missing", refused="shard: missing; restore it, or prepare")
def missing_shard(folder):
    shards(records(folder))[0].unlink()


@record_case("a shard that is cut off", refused="bytes, index-test.npz says otherwise: damaged")
def short_shard(folder):
    shard = shards(records(folder))[0]
    shard.write_bytes(shard.read_bytes()[:-9])


@record_case("a damaged shard of others", refused="does not load: RuntimeError: Corrupted Riegeli")
def damaged_shard(folder):
    others(folder)
    for shard in shards(folder):
        content = bytearray(shard.read_bytes())
        place = content.index(b"PNG") + 40
        content[place] ^= 1
        shard.write_bytes(content)


@record_case("a damaged index", refused="index: does not load: ")
def damaged_index(folder):
    change_a_byte_of(records(folder) / "index-train.npz")


def change_a_byte_of(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


@record_case("shards that lie elsewhere", refused="filepathTemplate: the shard /etc/mine-train")
def shards_elsewhere(folder):
    def change(info):
        for split in info["splits"]:
            split["filepathTemplate"] = "/etc/{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

    change_json(others(folder) / INFO, change)


@record_case("a record without a label (-1)", refused="record 0: objects: label -1 of 1 classes")
def no_label(folder):
    others(folder, {"label": -1})


@record_case("a broken image in a record", refused="record 0: image: broken: it is cut off")
def broken_record(folder):
    content = io.BytesIO()
    record_data.pixels(np.random.default_rng(0), H, W).save(content, "JPEG")
    others(folder, image=io.BytesIO(content.getvalue()[:-200]))


@record_case(
    "a detector with masks on records without", flags=(*RECORDS, *MASKS), refused="have no masks"
)
def no_masks(folder):
    others(folder)


@record_case(
    "parts of one split that overlap",
    flags=(*RECORDS, "--config.data.val=train[:1]"),
    refused="(train1.png) is in train too",
)
def overlapping_parts(folder):
    records(folder)


def _coco_flags(folder):
    output = folder.with_name("records")
    return ["--dataset=coco", f"--source={folder}", f"--output={output}"]


_TRAIN = "--split=train=train.json:train2017"


@archive_case(
    "another archive than the published one",
    refused="train2017.zip: archive: 15 bytes, the published archive has 19336861798; download",
    report="https://github.com/tensorflow/datasets/issues/2461",
)
def wrong_archive(folder):
    good(folder)
    (folder / "train2017.zip").write_bytes(b"not the archive")
    return _coco_flags(folder)


@archive_case(
    "an archive that is cut off",
    refused="train2017.zip: archive: damaged: BadZipFile",
    report="https://github.com/tensorflow/datasets/issues/2087",
)
def short_archive(folder):
    good(folder)
    with zipfile.ZipFile(folder / "train2017.zip", "w") as file:
        file.writestr("train2017/train1.png", b"0" * 100)
    content = (folder / "train2017.zip").read_bytes()
    (folder / "train2017.zip").write_bytes(content[:-30])
    return [*_coco_flags(folder), _TRAIN, "--any_archives"]


@archive_case("an archive without an image", refused="train2.png: image: missing; restore it")
def missing_member(folder):
    good(folder)
    with zipfile.ZipFile(folder / "train2017.zip", "w") as file:
        file.write(folder / "images" / "train1.png", "train2017/train1.png")
    return [*_coco_flags(folder), _TRAIN, "--any_archives"]


@archive_case("a folder of records that holds something", refused="--output: something else is")
def full_output(folder):
    output = good(folder).with_name("records")
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    return [*_coco_flags(folder), "--split=train=train.json:images"]


@archive_case("a split that says nothing", refused="--split: 'train.json'; give NAME=WHAT")
def faulty_split(folder):
    return [*_coco_flags(good(folder)), "--split=train.json"]


def _tfrecord_flags(folder, change):
    """Return flags to convert TFRecords of which the first file was changed."""
    record_data.tfrecord_copy(records(folder.with_name("records")), folder)
    file = sorted(folder.glob("*tfrecord*"))[0]
    file.write_bytes(change(file.read_bytes()))
    output = folder.with_name("again")
    return ["--dataset=tfrecord", f"--source={folder}", f"--output={output}"]


def _flip(content):
    content = bytearray(content)
    content[content.index(b"PNG") + 40] ^= 1
    return bytes(content)


@archive_case(
    "a TFRecord with a changed byte", refused="damaged: the checksum differs", is_late=True
)
def changed_tfrecord(folder):
    return _tfrecord_flags(folder, _flip)


@archive_case("compressed TFRecords", refused="it is compressed; prepare it unc", is_late=True)
def compressed_tfrecord(folder):
    return _tfrecord_flags(folder, zlib.compress)


@archive_case("a TFRecord that is cut off", refused="it is cut off", is_late=True)
def short_tfrecord(folder):
    return _tfrecord_flags(folder, lambda content: content[:-5])


@archive_case(
    "a list of images that leads out of the archive",
    refused="images[0].file_name: '../secret.png' leads out of",
)
def name_leads_out(folder):
    coco = read(good(folder))
    coco["images"][0]["file_name"] = "../secret.png"
    write(folder, "train", coco)
    return [*_coco_flags(folder), "--split=train=train.json:images"]
