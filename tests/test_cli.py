"""Every mistake a user can make ends in one line with file, field and remedy, status 2, and nothing
written.
"""

import json
import re

import cv2
import numpy as np
import pytest
from helpers import run_commands

from crnas_jax.checkpoint import save_variables
from crnas_jax.runtime.workdir import Workdir

SPLITS = ("train", "val", "test")


def _make_folder(folder):
    """Write a data set with two images of 40 x 60 in each split, one box each."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in SPLITS:
        images, annotations = [], []
        for image_id in (1, 2):
            name = f"{split}{image_id}.png"
            pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
            cv2.imwrite(str(folder / "images" / name), pixels)
            images.append({"id": image_id, "file_name": name, "height": 40, "width": 60})
            box = {"id": image_id, "image_id": image_id, "category_id": 5, "bbox": [4, 5, 20, 10]}
            annotations.append({**box, "area": 200, "iscrowd": 0})
        coco = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 5, "name": "cell"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(coco))


def _json(change, split="train"):
    """Return a function that makes a mistake in an annotation file; `change` gets its content."""

    def spoil(folder):
        path = folder / f"{split}.json"
        coco = json.loads(path.read_text())
        path.write_text(json.dumps(change(coco) or coco))

    return spoil


def _text(text, split="train"):
    return lambda folder: (folder / f"{split}.json").write_bytes(text)


def _set(where, field, value):
    return _json(lambda coco: coco[where][1].update({field: value}))


def _drop(where, field):
    return _json(lambda coco: coco[where][1].pop(field) and None)


def _image(action):
    return lambda folder: action(folder / "images" / "val2.png")


def _copy_image(folder):
    """Copy the first image of `train` over the second of `test`."""
    content = (folder / "images" / "train1.png").read_bytes()
    (folder / "images" / "test2.png").write_bytes(content)


def _share_file(folder):
    path = folder / "test.json"
    path.write_text(path.read_text().replace("test1.png", "train1.png"))


def _no_boxes(coco):
    coco["annotations"] = []


def _cut_jpeg(folder):
    """Write half of a JPEG file, of which decoders fill the rest with grey."""
    pixels = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    whole = cv2.imencode(".jpg", pixels)[1].tobytes()
    (folder / "images" / "train1.jpg").write_bytes(whole[: len(whole) // 2])
    path = folder / "train.json"
    path.write_text(path.read_text().replace("train1.png", "train1.jpg"))


STRICT = "--config.data.strict=True"
# Name: (what is done to a good folder, flags, what the line says).
CASES = {
    "no json": (lambda folder: (folder / "val.json").unlink(), [], r"val\.json: file: No such"),
    "json is a folder": (
        lambda folder: (folder / "val.json").unlink() or (folder / "val.json").mkdir(),
        [],
        r"val\.json: file: Is a directory",
    ),
    "not json": (_text(b"{"), [], r"train\.json: json: "),
    "empty file": (_text(b""), [], r"train\.json: json: "),
    "not text": (_text(b"\xff\xfe\x00"), [], r"train\.json: json: "),
    "too deep": (_text(b"[" * 100_000), [], r"train\.json: json: "),
    "a list": (_text(b"[]"), [], r"train\.json: images: missing"),
    "no images field": (_json(lambda c: c.pop("images") and None), [], "images: missing"),
    "images is no list": (_json(lambda c: c.update(images={})), [], "images: missing, or no list"),
    "no image": (
        _json(lambda c: c.update(images=[], annotations=[])),
        [],
        "images: there are none",
    ),
    "no categories": (_json(lambda c: c.update(categories=[])), [], "categories: there are none"),
    "category without name": (
        _json(lambda c: c.update(categories=[{"id": 5}])),
        [],
        r"categories\[0\]\.name: missing",
    ),
    "category twice": (
        _json(lambda c: c["categories"].append({"id": 5, "name": "x"})),
        [],
        r"categories\[1\]: id 5 comes twice",
    ),
    "other categories": (
        _json(lambda c: c["categories"].append({"id": 6, "name": "x"}), "test"),
        [],
        "test: other categories than train",
    ),
    "image is no object": (
        _json(lambda c: c["images"].append(3)),
        [],
        r"images\[2\]: is no object",
    ),
    "image without id": (_drop("images", "id"), [], r"images\[1\]\.id: missing"),
    "image id twice": (_set("images", "id", 1), [], r"images\[1\]: id 1 comes twice"),
    "image id is text": (_set("images", "id", "2"), [], r"images\[1\]\.id: '2'"),
    "image id too large": (_set("images", "id", 2**70), [], r"images\[1\]\.id"),
    "no height": (_drop("images", "height"), [], r"images\[1\]\.height: missing"),
    "no width at all": (_set("images", "width", 0), [], r"images\[1\]\.width: 0 is not valid"),
    "no file name": (_drop("images", "file_name"), [], r"images\[1\]\.file_name: missing"),
    "name leads out": (
        _set("images", "file_name", "../../secret.png"),
        [],
        r"images\[1\]\.file_name: '\.\./\.\./secret\.png' leads out",
    ),
    "absolute name": (_set("images", "file_name", "/etc/passwd"), [], "leads out"),
    "no bbox": (_drop("annotations", "bbox"), [], r"annotations\[1\]\.bbox: missing"),
    "short bbox": (
        _set("annotations", "bbox", [1, 2, 3]),
        [],
        r"annotations\[1\]\.bbox: \[1, 2, 3\]",
    ),
    "bbox of text": (_set("annotations", "bbox", ["1", 2, 3, 4]), [], r"annotations\[1\]\.bbox"),
    "bbox not finite": (
        _set("annotations", "bbox", [1, 2, float("nan"), 4]),
        [],
        r"annotations\[1\]\.bbox",
    ),
    "area not a number": (_set("annotations", "area", None), [], r"annotations\[1\]\.area"),
    "area negative": (_set("annotations", "area", -1), [], r"annotations\[1\]\.area"),
    "iscrowd": (_set("annotations", "iscrowd", 7), [], r"annotations\[1\]\.iscrowd: 7"),
    "unknown category": (
        _set("annotations", "category_id", 9),
        [],
        "category_id 9 is not a category",
    ),
    "unknown image": (_set("annotations", "image_id", 9), [], "image_id 9 is not an image"),
    "no object": (_json(_no_boxes, "val"), [], "val: no object in it"),
    "strict: no size": (
        _set("annotations", "bbox", [4, 5, 0, 10]),
        [STRICT],
        r"annotations\[1\]\.bbox: .* has no size",
    ),
    "strict: outside": (
        _set("annotations", "bbox", [70, 5, 9, 10]),
        [STRICT],
        r"annotations\[1\]\.bbox: .* has no size inside its image of 60 x 40",
    ),
    "strict: reaches out": (
        _set("annotations", "bbox", [50, 5, 20, 10]),
        [STRICT],
        r"annotations\[1\]\.bbox: .* reaches out of",
    ),
    "missing image": (
        _image(lambda path: path.unlink()),
        [],
        r"val2\.png: image: missing; restore",
    ),
    "empty image": (
        _image(lambda path: path.write_bytes(b"")),
        [],
        r"val2\.png: image: broken",
    ),
    "image is text": (_image(lambda path: path.write_text("x" * 99)), [], r"val2\.png: image: "),
    "image of another size": (
        _image(lambda path: cv2.imwrite(str(path), np.zeros((40, 61, 3), np.uint8))),
        [],
        r"val2\.png: size: 40 x 61 pixels",
    ),
    "splits share a file": (_share_file, [], r"test: .*train1\.png is in train too"),
    "splits share an image": (
        _copy_image,
        [],
        r"(test2|train1)\.png: data\.(train|test): the same",
    ),
    "no weights to start from": (
        None,
        ["--config.init_from.baseline=none"],
        "none: config.init_from.baseline: there are no weights",
    ),
    "weights that are none": (
        lambda folder: (folder / "weights").mkdir(),
        ["--config.init_from.baseline={folder}/weights"],
        "weights: checkpoint: does not load",
    ),
    "grids of numbers": (None, ["--config.supernet.grids=(1,2,3,4)"], r"grids\[0\]: 1; give"),
    "grids of text": (
        None,
        ["--config.supernet.grids=(('a',),(1,),(1,),(1,))"],
        r"supernet\.grids: .*whole number",
    ),
    "half a block": (
        None,
        ["--config.supernet.grids=((1.5,2),(1,),(1,),(1,))"],
        r"supernet\.grids: .*whole number",
    ),
    "half a channel": (
        None,
        ["--config.supernet.widths=(8.5,8,8,8)"],
        r"supernet\.widths: .*whole",
    ),
    "half a dilation": (None, ["--config.supernet.dilations=(1.5,2)"], "dilations: .*whole"),
    "half a proposal": (None, ["--config.detector.pre_nms=(30.5,20)"], "pre_nms: .*whole"),
    "drops of text": (None, ["--config.stage_train.lr_drops=('a',)"], r"stage_train\.lr_drops: "),
    "seed too large": (None, ["--config.seed=99999999999999999999"], "seed: 9+; give a whole"),
    "rate not finite": (None, ["--config.stage_train.lr_per_image=inf"], "lr_per_image: inf"),
    "a JPEG cut short": (_cut_jpeg, [], r"train1\.jpg: image: broken: it is cut off"),
    "category name twice": (
        _json(lambda c: c["categories"].append({"id": 6, "name": "cell"})),
        [],
        r"categories\[1\]\.name: 'cell' comes twice",
    ),
    "area beyond any image": (_set("annotations", "area", 1e11), [], r"annotations\[1\]\.area"),
    "weights without a backbone": (
        lambda folder: save_variables(folder / "weights", {"params": {"a": np.zeros(2)}}),
        ["--config.init_from.baseline={folder}/weights"],
        "weights: config.init_from.baseline: holds no backbone",
    ),
    "unknown field": (None, ["--config.serch.beam=3"], "unknown field: .*serch"),
    "unknown nested field": (None, ["--config.search.bem=3"], 'Did you mean "beam"'),
    "wrong type": (None, ["--config.seed=x"], "config.seed=x"),
    "unknown flag": (None, ["--sede=1"], "Unknown command line flag 'sede'"),
    "stray word": (None, ["fast"], "fast: is no flag"),
    "unknown baseline": (None, ["--config.baseline=resnet5"], "did you mean resnet50"),
    "impossible budget": (
        None,
        ["--config.budget=3"],
        "no allocation costs 3 blocks; nearest: 4, 5",
    ),
    "negative budget": (
        None,
        ["--config.budget=-1"],
        "budget: -1.0; give a number of at",
    ),
    "grid out of order": (
        None,
        ["--config.supernet.grids=((2,1),(1,),(1,),(1,))"],
        r"grids\[0\]: \(2, 1\)",
    ),
    "three stages": (None, ["--config.widths=(8,8,8)"], "widths: .*; give 4 entries"),
    "dilation of zero": (None, ["--config.supernet.dilations=(0,1)"], "supernet.dilations"),
    "unknown sharing": (
        None,
        ["--config.supernet.stage_sharing=x"],
        "stage_sharing: 'x' is unknown",
    ),
    "unknown stage strategy": (
        None,
        ["--config.search.stage_strategy=greedy"],
        "search.stage_strategy: 'greedy' is unknown; use 'exhaustive' or 'racing' or",
    ),
    "unknown operation strategy": (
        None,
        ["--config.search.operation_strategy=x"],
        "search.operation_strategy: 'x' is unknown; use 'greedy' or 'random' or 'evolution'",
    ),
    "unknown statistics": (None, ["--config.search.bn=x"], "search.bn: 'x' is unknown"),
    "unknown schedule": (
        None,
        ["--config.stage_train.schedule=cosin"],
        "stage_train.schedule: 'cosin'",
    ),
    "unknown executor": (None, ["--config.executor.kind=slurm"], "executor.kind: 'slurm' is unkn"),
    "unknown precision": (None, ["--config.precision=float16"], "precision: 'float16' is unknown"),
    "no epochs": (None, ["--config.detector_train.epochs=0"], "detector_train.epochs: 0.0"),
    "drops": (None, ["--config.stage_train.lr_drops=(0.9,0.5)"], "stage_train.lr_drops"),
    "batch of none": (None, ["--config.search.batch_size=0"], "search.batch_size: 0"),
    "limit of nothing": (
        None,
        ["--config.search.max_flops=4.1"],
        "no allocation of 8 blocks has at most 4.1 multiply-adds",
    ),
    "beam of none": (None, ["--config.search.beam=0"], "search.beam: 0"),
    "batch and parts": (
        None,
        ["--config.detector_train.accumulate=3"],
        "detector_train.batch_size: 8 on 1 devices, accumulated over 3 parts; use a multiple of 3",
    ),
    "too many devices": (None, ["--config.devices=64"], "devices: 64 asked for; 1 are there"),
    "long side": (None, ["--config.data.max_size=10"], "data.max_size: 10 is less than min_size"),
    "unknown data": (None, ["--config.data.name=yolo"], "data.name: 'yolo' is unknown"),
    "pre-trains what": (
        None,
        ["--config.pretrain.networks=('backbone',)"],
        "'backbone' is unknown",
    ),
    "no images to pre-train": (
        None,
        ["--config.pretrain.networks=('baseline',)", "--config.pretrain.data.folder=none"],
        "none/train: folder: missing",
    ),
    "detector": (
        None,
        ["--config.detector.kind=yolo"],
        "detector.kind: 'yolo' is unknown; use 'faster_rcnn'",
    ),
    "neck": (None, ["--config.detector.neck=pan"], "detector.neck: 'pan' is unknown"),
    "frozen": (None, ["--config.detector.freeze_at=6"], "detector.freeze_at: 6 is unknown"),
    "level": (None, ["--config.detector.lowest_level=4"], "detector.lowest_level: 4 is unknown"),
    "no masks": (
        None,
        ["--config.detector.kind=mask_rcnn"],
        r"segmentation: .* is no mask of .* pixels; give polygons",
    ),
    "masks of voc": (
        None,
        ["--config.detector.kind=mask_rcnn", "--config.data.name=voc"],
        "data.name: 'voc' has no masks",
    ),
    "voc without lists": (
        None,
        ["--config.data.name=voc", "--config.data.train=VOC2007/trainval"],
        r"(VOC2007|data.val: 'val.json' is no list)",
    ),
    "nothing to search on": (None, ["--config.data.val="], "data.val: empty, and a search"),
    "nothing to detect": (None, ["--config.data.name=none"], "data.name: .none., and detection"),
    "no such network file": (
        None,
        ["--config.baseline={folder}/none.json"],
        r"none\.json: json: .*give a file of to_json",
    ),
    "weights not there": (
        None,
        ["--config.init_from.baseline={folder}/none"],
        "config.init_from.baseline: there are no weights",
    ),
}
# What concerns the flags --config and --workdir themselves.
OWN_CONFIGS = {
    "no such config": ("configs/none.py", "configs/none.py: --config: there is no such file"),
    "unknown argument": ("configs/bccd.py:tpu", "configs/bccd.py: device: tpu; use cpu or gpu"),
    "syntax": ("{tmp}/syntax.py", r"syntax\.py: line 1"),
    "own config misspelt": ("{tmp}/misspelt.py", r"misspelt\.py: line 4: .*mn_size"),
    "own config fails": ("{tmp}/fails.py", r"fails\.py: line 2: division by zero"),
    "no data folder": ("configs/bccd.py", "data.folder: empty; give the folder .*data.folder=PATH"),
    "own config from nothing": ("{tmp}/nothing.py", r"nothing\.py: .*: missing; start from"),
}
_CONFIG_FILES = {
    "syntax": "def get_config(:\n",
    "misspelt": "from configs import base\ndef get_config():\n  config = base.get_config()\n"
    "  config.data.mn_size = 1\n  return config\n",
    "fails": "def get_config():\n  return 1 / 0\n",
    "nothing": "from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict()\n",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the outcome of every case by name, and the working folders that were written."""
    tmp = tmp_path_factory.mktemp("mistakes")
    for name, text in _CONFIG_FILES.items():
        (tmp / f"{name}.py").write_text(text)
    commands = []
    for index, (spoil, flags, _) in enumerate(CASES.values()):
        folder = tmp / str(index)
        _make_folder(folder)
        if spoil:
            spoil(folder)
        commands.append(
            [
                "scripts/run_crnas.py",
                "--config=configs/bccd.py",
                f"--config.data.folder={folder}",
                f"--workdir={tmp}/w{index}",
                *(flag.replace("{folder}", str(folder)) for flag in flags),
            ]
        )
    for name, (config, _) in OWN_CONFIGS.items():
        commands.append(
            [
                "scripts/run_crnas.py",
                f"--config={config.format(tmp=tmp)}",
                f"--workdir={tmp}/w {name}",
            ]
        )
    outcomes = dict(zip([*CASES, *OWN_CONFIGS], run_commands(commands), strict=True))
    return outcomes, list(tmp.glob("w*"))


@pytest.mark.parametrize("name", [*CASES, *OWN_CONFIGS])
def test_one_line_status_2_nothing_written(results, name):
    outcomes, written = results
    outcome = outcomes[name]
    expected = CASES[name][2] if name in CASES else OWN_CONFIGS[name][1]
    assert outcome["status"] == 2, outcome["stderr"]
    (line,) = outcome["stderr"].strip().splitlines()
    assert line.startswith("error: ")
    assert re.search(expected, line), line
    assert not written


def test_a_good_folder_is_not_refused(tmp_path):
    """So that every case fails for its own reason."""
    from crnas_jax.data.checks import require_consistent
    from crnas_jax.data.coco import CocoSource

    _make_folder(tmp_path)
    sources = {
        split: CocoSource(tmp_path / "images", tmp_path / f"{split}.json", strict=True)
        for split in SPLITS
    }
    require_consistent(sources)


def _tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_in_use_and_of_others_stay_as_they_are(tmp_path):
    """Locked, of another config, of format 1, with its config gone or spoilt, and no folder."""
    names = ("locked", "other", "lost", "spoilt", "old")
    locked, other, lost, spoilt, old = (tmp_path / name for name in names)
    held = Workdir(locked)
    held.claim({}, {})
    for folder in (other, spoilt):
        workdir = Workdir(folder)
        workdir.claim({}, {"train": {"annotations": "others"}})
        workdir.release()
    (spoilt / "config.json").write_text("[]")
    old.mkdir()
    (old / "config.json").write_text('{"format": 1, "hash": "hash", "config": {}}')
    (lost / "baseline").mkdir(parents=True)
    (lost / "baseline" / "result.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    expected = {
        locked: "another process is working in it",
        other: "data.train: its annotations are not those that this folder was begun with",
        lost: "config.json: file: missing beside results",
        spoilt: r"config\.json: format: None, this version works in folders of format 3",
        old: r"config\.json: format: 1, this version works in folders of format 3",
        tmp_path / "file": "--workdir",
        "": "--workdir: missing",
    }
    before = _tree(tmp_path)
    commands = [
        ["scripts/run_crnas.py", "--config=configs/quickstart.py", f"--workdir={folder}"]
        for folder in expected
    ]
    commands.append(
        ["scripts/pretrain.py", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'new'}"]
    )
    messages = [
        *expected.values(),
        r"quickstart.py: pretrain.networks: stage_supernet is not in it",
    ]
    for outcome, message in zip(run_commands(commands), messages, strict=True):
        assert outcome["status"] == 2, outcome["stderr"]
        (line,) = outcome["stderr"].strip().splitlines()
        assert re.search(message, line), line
    held.release()
    assert {path: text for path, text in _tree(tmp_path).items() if path.name != ".lock"} == {
        path: text for path, text in before.items() if path.name != ".lock"
    }
