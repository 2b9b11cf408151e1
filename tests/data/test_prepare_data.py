"""Building records: archives as folders, kills, damage, full disks, and what is refused."""

import hashlib
import io
import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from helpers import ROOT, campaign_rng
from record_data import (
    SPLITS,
    VOC_CLASSES,
    archive,
    class_folder,
    coco_folder,
    inaturalist_archives,
    pixels,
    tfrecord_copy,
    tfrecords,
    voc_folder,
)

from crnas_jax import cli
from crnas_jax.data.build import (
    ClassificationDataOptions,
    DataOptions,
    classification_sources,
    detection_source,
)
from crnas_jax.data.records import tfrecord
from crnas_jax.data.records.originals import open_original
from crnas_jax.data.records.writer import prepare
from crnas_jax.data.tfds import TfdsClassification
from crnas_jax.data.voc import CLASS_NAMES
from crnas_jax.errors import UserError

COCO_SPLITS = {split: f"{split}.json:images" for split in SPLITS}


def build(name, source, output, splits=None, shard_bytes=20_000, **options):
    prepare(open_original(name, source, splits, **options), output, shard_bytes)
    return output


def checksums(folder):
    """Return the SHA-256 of every file of a folder by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def members(folder, prefix=""):
    """Return (name, content) of the files of a folder, not in order."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: hash(p.name[::-1]))
    return [(f"{prefix}{path.relative_to(folder)}", path.read_bytes()) for path in files]


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return coco_folder(tmp_path_factory.mktemp("data") / "coco")


def _published_coco(coco, folder):
    """Write the folder's files as archives with the published names."""
    folder.mkdir()
    archive(folder / "train2017.zip", members(coco / "images", "train2017/"))
    files = [(f"annotations/instances_{s}2017.json", (coco / f"{s}.json")) for s in SPLITS]
    files = [(name, path.read_bytes()) for name, path in files]
    archive(folder / "annotations_trainval2017.zip", files)
    archive(folder / "val2017.zip", members(coco / "images", "val2017/"))
    return folder


def test_archives_give_the_records_of_their_folders(coco, tmp_path):
    expected = build("coco", coco, tmp_path / "folder", COCO_SPLITS)
    archives = _published_coco(coco, tmp_path / "archives")
    splits = {split: f"annotations/instances_{split}2017.json:{split}2017" for split in SPLITS}
    actual = build("coco", archives, tmp_path / "zip", splits, any_archives=True)
    assert checksums(actual) == checksums(expected)
    assert len(list(actual.glob("*array_record*"))) > 3

    devkit = voc_folder(tmp_path / "VOCdevkit")
    text = {split: f"VOC2007/{split}+VOC2012/{split}" for split in SPLITS}
    expected = build("voc", tmp_path, tmp_path / "voc", text, class_names=VOC_CLASSES)
    (tmp_path / "tars").mkdir()
    for year, name in (("VOC2007", "VOCtest_06-Nov-2007"), ("VOC2012", "VOCtrainval_11-May-2012")):
        files = members(devkit / year, f"VOCdevkit/{year}/")
        archive(tmp_path / f"tars/{name}.tar", files)
    options = {"class_names": VOC_CLASSES, "any_archives": True}
    actual = build("voc", tmp_path / "tars", tmp_path / "voc-tar", text, **options)
    assert checksums(actual) == checksums(expected)


def _images(source):
    return [(record["image"].tobytes(), record["label"]) for record in source]


def _same_as_folders(folder, records, splits):
    plain = classification_sources(ClassificationDataOptions("folder", str(folder)))
    options = ClassificationDataOptions("tfds", str(records), *splits)
    for split, source in classification_sources(options).items():
        assert source.class_names == plain[split].class_names
        assert _images(source) == _images(plain[split])
        assert [int(record["image_id"]) for record in source] == list(range(len(source)))


def test_imagenet_from_folders_and_from_tars_of_tars(tmp_path):
    # The classes of ILSVRC2012's first two validation images, and another one.
    classes, rng = ("n01751748", "n09193705", "n02105855"), np.random.default_rng(0)
    folder, tars = tmp_path / "folders", tmp_path / "tars"
    for split, stem in (("train", "n_{}"), ("val", "ILSVRC2012_val_{:08d}")):
        for number, name in enumerate(classes, 1):
            path = folder / split / name / (stem.format(number) + ".JPEG")
            path.parent.mkdir(parents=True)
            pixels(rng, 30, 40).save(path)
    records = build("imagenet", folder, tmp_path / "a", {"train": "train", "val": "val"})
    _same_as_folders(folder, records, ("train", "val"))

    tars.mkdir()
    inner = [
        (f"{path.name}.tar", archive(tmp_path / "inner.tar", members(path)).read_bytes())
        for path in sorted((folder / "train").iterdir(), reverse=True)
    ]
    archive(tars / "ILSVRC2012_img_train.tar", inner)
    flat = [(pathlib.Path(name).name, content) for name, content in members(folder / "val")]
    flat = [file for file in flat if "00000003" not in file[0]]
    archive(tars / "ILSVRC2012_img_val.tar", flat)
    records = build("imagenet", tars, tmp_path / "b", any_archives=True)
    train, val = (TfdsClassification(records, split) for split in ("train", "validation"))
    plain = classification_sources(ClassificationDataOptions("folder", str(folder)))
    assert train.class_names == sorted(classes)
    assert _images(train) == _images(plain["train"])
    by_number = [(folder / "val" / name).glob("*") for name in classes[:2]]
    expected = [classes.index(path.parent.name) for paths in by_number for path in paths]
    assert [sorted(classes)[record["label"]] for record in val] == [classes[i] for i in expected]


def test_inaturalist_from_a_compressed_tar(tmp_path):
    folder = class_folder(tmp_path / "folders", 9)
    archives = inaturalist_archives(tmp_path / "archives", folder)
    records = build("inaturalist", archives, tmp_path / "records", any_archives=True)
    _same_as_folders(folder, records, ("train", "validation"))


def test_kills_at_random_moments_change_nothing(coco, tmp_path, capsys):
    expected = checksums(build("coco", coco, tmp_path / "whole", COCO_SPLITS, 4000))
    num_shards = sum("array_record" in name for name in expected)
    output, rng = tmp_path / "killed", campaign_rng()
    script = (
        "from crnas_jax.data.records import originals, writer\n"
        f"data_set = originals.open_original('coco', {str(coco)!r}, {COCO_SPLITS})\n"
        f"writer.prepare(data_set, {str(output)!r}, 4000)"
    )
    kept = {}
    for moment in sorted(rng.choice(np.arange(1, num_shards), 3, replace=False).tolist()):
        process = _start(script)
        while len(list(output.glob("*array_record*"))) < moment and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        names = {path.name: path.stat() for path in output.glob("*array_record*")}
        assert len(names) >= moment
        assert not (output / "dataset_info.json").exists() or len(names) == num_shards
        for name, before in kept.items():  # a finished shard is never written again
            assert names[name].st_mtime_ns == before.st_mtime_ns
        kept = names
    process = _start(script)
    assert process.wait() == 0
    assert checksums(output) == expected
    assert checksums(build("coco", coco, output, COCO_SPLITS, 4000)) == expected
    assert "finished before" in capsys.readouterr().out


def _start(script):
    command = [sys.executable, "-c", script]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_a_finished_shard_that_changed_is_named(coco, tmp_path, monkeypatch):
    output = _unfinished(coco, tmp_path, monkeypatch)
    shard = next(output.glob("*array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"{shard.name}: shard: its content has changed"):
        build("coco", coco, output, COCO_SPLITS)
    shard.unlink()
    build("coco", coco, output, COCO_SPLITS)
    expected = build("coco", coco, tmp_path / "whole", COCO_SPLITS)
    assert checksums(output) == checksums(expected)


def _unfinished(coco, tmp_path, monkeypatch):
    """Return a folder of records that was left when all shards were finished."""
    from crnas_jax.data.records import writer

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_finish", lambda *arguments: None)
        return build("coco", coco, tmp_path / "records", COCO_SPLITS)


def test_a_full_disk_ends_in_a_line_and_what_is_finished_stays(coco, tmp_path, monkeypatch):
    output, limit = tmp_path / "records", resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: .*File too large"):
            build("coco", coco, output, COCO_SPLITS, 10**9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    build("coco", coco, output, COCO_SPLITS, 10**9)
    expected = build("coco", coco, tmp_path / "whole", COCO_SPLITS, 10**9)
    assert checksums(output) == checksums(expected)

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"disk: 0\.0 GB to write, 0\.0 GB free; make room"):
        build("coco", coco, tmp_path / "none", COCO_SPLITS)


def test_voc_has_its_twenty_classes_by_itself(tmp_path):
    devkit = voc_folder(tmp_path / "VOCdevkit")
    for path in devkit.rglob("*.xml"):
        text = path.read_text().replace(">cell<", ">cat<").replace(">dot<", ">dog<")
        path.write_text(text)
    flags = ["--split=train=VOC2007/train", f"--source={tmp_path}", "--dataset=voc"]
    assert _command(*flags, f"--output={tmp_path / 'records'}") == 0
    options = DataOptions("tfds", str(tmp_path / "records"), train="train")
    source = detection_source(options, "train")
    assert source.class_names == list(CLASS_NAMES)
    assert set(source[3]["labels"].tolist()) <= {8, 12}


@pytest.mark.parametrize("identifier", ["a", None, 2**63, 1.5])
def test_annotations_without_a_whole_id_are_numbered(coco, tmp_path, identifier):
    content = json.loads((coco / "train.json").read_text())
    content["annotations"][2]["id"] = identifier
    (tmp_path / "train.json").write_text(json.dumps(content))
    splits = {"train": f"{tmp_path / 'train.json'}:images"}
    records = build("coco", coco, tmp_path / "records", splits)
    source = detection_source(DataOptions("tfds", str(records), train="train"), "train")
    assert len(source.coco["annotations"]) == len(content["annotations"]) - 1  # one is outside


@pytest.mark.parametrize("name", ["", " cell", "a\nb", "cell ", "\ud800"])
def test_names_that_a_list_cannot_hold_are_refused(coco, tmp_path, name):
    content = json.loads((coco / "train.json").read_text())
    content["categories"][2]["name"] = name
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classes: a class is called .*; rename it"):
        build("coco", coco, tmp_path / "x", {"train": f"{tmp_path / 'train.json'}:images"})
    assert not (tmp_path / "x").exists()


def _zip_of(coco, folder, **options):
    folder.mkdir()
    with zipfile.ZipFile(folder / "train2017.zip", "w", **options) as file:
        for name, content in members(coco / "images", "train2017/"):
            file.writestr(name, content)
    shutil.copy(coco / "train.json", folder / "train.json")
    return folder, {"train": "train.json:train2017"}


def test_damaged_members_end_in_one_line(coco, tmp_path):
    folder, splits = _zip_of(coco, tmp_path / "zip", compression=zipfile.ZIP_DEFLATED)
    content = bytearray((folder / "train2017.zip").read_bytes())
    for place in range(200, len(content) // 2, 97):
        content[place] ^= 0xFF
    (folder / "train2017.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"archive: damaged: .*; download it again"):
        build("coco", folder, tmp_path / "records", splits, any_archives=True)


def test_hard_links_of_a_tar_are_followed(tmp_path):
    devkit = voc_folder(tmp_path / "folder" / "VOCdevkit")
    text = {"train": "VOC2007/train"}
    options = {"class_names": VOC_CLASSES, "any_archives": True}
    expected = build("voc", tmp_path / "folder", tmp_path / "a", text, **options)
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "VOCtest_06-Nov-2007.tar", "w") as file:
        links = []
        for name, content in members(devkit, "VOCdevkit/"):
            member = tarfile.TarInfo(name if name.endswith(".txt") else f"./first/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
            if member.name != name:
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.LNKTYPE, member.name
                links.append(link)
        for link in links:
            file.addfile(link)
    actual = build("voc", tmp_path / "tar", tmp_path / "b", text, **options)
    assert checksums(actual) == checksums(expected)


def test_lists_that_lead_out_or_repeat_classes_are_refused(tmp_path):
    folder = class_folder(tmp_path / "folders", 3)
    archives = inaturalist_archives(tmp_path / "archives", folder)
    with zipfile.ZipFile(archives / "train_val2017.zip") as file:
        content = json.loads(file.read("train2017.json"))

    def changes():
        yield "leads out", lambda c: c["images"][0].update(file_name="../secret.jpg")
        yield "json: ", lambda c: c["images"][0].update(file_name=5)
        yield "a name comes twice", lambda c: c["categories"][0].update(name="n00000000")
        yield "json: ", lambda c: c["annotations"].clear()

    for message, change in changes():
        changed = json.loads(json.dumps(content))
        change(changed)
        (tmp_path / "train.json").write_text(json.dumps(changed))
        splits = {"train": str(tmp_path / "train.json")}
        with pytest.raises(UserError, match=message):
            build("inaturalist", archives, tmp_path / "x", splits, any_archives=True)


def test_records_that_are_none_and_wrong_counts_are_named(coco, tmp_path):
    records = build("coco", coco, tmp_path / "records", COCO_SPLITS, 10**9)
    copy = tfrecord_copy(records, tmp_path / "copy")
    (shard,) = copy.glob("*train*")
    shard.write_bytes(tfrecords([b"\xff garbage"] * 11))
    with pytest.raises(UserError, match=r"train, record 0: features: "):
        prepare(tfrecord.data_set(copy), tmp_path / "again")
    shard.write_bytes(tfrecords([b""] * 11))
    with pytest.raises(UserError, match=r"train, record 0: features: "):
        prepare(tfrecord.data_set(copy), tmp_path / "empty")
    shard.write_bytes(tfrecords([b"x"] * 3))
    with pytest.raises(UserError, match=r"shard: 3 records, dataset_info.json says 11"):
        list(tfrecord.data_set(copy).splits["train"].records(0, 11))
    # A shard of ours that is made of a part of theirs reads that part alone.
    content = tfrecords([b"first", b"second", b"third"])
    shard.write_bytes(content.replace(b"first", b"wrong"))
    assert list(tfrecord.read_records(shard, 1, 2, 3)) == [b"second"]
    assert list(tfrecord.read_records(shard, 2, 3, 3)) == [b"third"]
    with pytest.raises(UserError, match="record 0: damaged: the checksum differs"):
        list(tfrecord.read_records(shard, 0, 1, 3))
    with pytest.raises(UserError, match=r"shard: 3 records, dataset_info.json says 2"):
        list(tfrecord.read_records(shard, 1, 2, 2))
    content = json.loads((records / "dataset_info.json").read_text())
    for count in ("99", "2"):
        content["splits"][0]["shardLengths"] = [count]
        (records / "dataset_info.json").write_text(json.dumps(content))
        options = DataOptions("tfds", str(records), train=content["splits"][0]["name"])
        with pytest.raises(UserError, match=r"shardLengths: |records, dataset_info.json says"):
            detection_source(options, "train")


def _command(*flags):
    return cli.main(["prepare-data", *flags])


def test_other_data_in_the_folder_are_not_touched(coco, tmp_path, capsys):
    flags = [f"--split={name}={text}" for name, text in COCO_SPLITS.items()]
    flags += ["--dataset=coco", f"--source={coco}", f"--output={tmp_path / 'records'}"]
    assert _command(*flags) == 0
    output = capsys.readouterr().out
    assert "GB to write" in output
    assert output.index("GB to write") < output.index("record 0/")
    before = checksums(tmp_path)
    assert _command(*flags[1:]) == 2  # another choice of splits
    assert "other records are there" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert _command(*flags[:-1], f"--output={tmp_path / 'mine'}") == 2
    assert "something else is there" in capsys.readouterr().err
    assert checksums(tmp_path / "records") == {
        name.removeprefix("records/"): value for name, value in before.items()
    }
