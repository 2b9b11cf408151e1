"""Every recipe of the paper: for every network it makes a run, and it runs on tiny stand-ins."""

import functools
import importlib
import json

import cv2
import numpy as np
import pytest
from helpers import ROOT, run_commands

from crnas_jax.arch import zoo
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings.check import check

DETECTION = ("faster_rcnn_coco", "mask_rcnn_coco", "cascade_mask_rcnn_coco", "nas_fpn_coco")
RECIPES = (*DETECTION, "faster_rcnn_voc", "imagenet", "search_coco")
TINY = [
    "--config.precision=float32",
    "--config.data.min_size=64",
    "--config.data.max_size=64",
    "--config.data.mask_size=16",
    "--config.detector.pyramid_channels=8",
    "--config.detector.head_channels=16",
    "--config.detector.mask_channels=8",
    "--config.detector.stacks=1",
    "--config.detector.rpn_samples=16",
    "--config.detector.pre_nms=(20,20)",
    "--config.detector.post_nms=(10,10)",
    "--config.detector.roi_samples=8",
    "--config.detector.nms_candidates=20",
    "--config.search.batch_size=2",
    "--config.search.calibration_images=2",
    "--config.pretrain.data.size=32",
    *(
        f"--config.{recipe}.{field}"
        for recipe in ("stage_train", "operation_train", "detector_train", "pretrain")
        for field in ("batch_size=2", "epochs=1")
    ),
]


@functools.cache
def _config(name, arguments=""):
    return importlib.import_module(f"configs.{name}").get_config(arguments)


@pytest.mark.parametrize("name", RECIPES)
def test_every_network_makes_a_run(name):
    """Compare with the network of that name, on canvases that its neck divides."""
    for network in zoo.ARCHS:
        config = _config(name, network)
        check(config)
        assert model_settings.baseline(config) == zoo.get(network)
        canvas = data_settings.image_size(config).canvas(portrait=False)
        assert model_settings.detector_cost(config, zoo.get(network), canvas, 80).flops > 1e10
        for side in canvas:
            assert side % (128 if name == "nas_fpn_coco" else 32) == 0
    assert config.network == ("searched" if name == "search_coco" else "baseline")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_how_to_launch_what_to_reach_and_how_long(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    assert f"--config=configs/{name}.py" in text
    assert "To reach" in text
    assert "GPU hour" in text


def test_schedules_are_the_papers():
    fields = _config("faster_rcnn_coco", "cr_resnet50,2x").detector_train
    assert fields.epochs == 25
    assert fields.lr_drops == (16 / 25, 22 / 25)
    assert fields.lr_per_image * 16 == pytest.approx(0.02)
    assert _config("cascade_mask_rcnn_coco").detector_train.lr_drops == (0.8, 0.95)
    assert _config("imagenet", "resnet50,100").pretrain.epochs == 100


@pytest.mark.parametrize("arguments", ["resnet5", "resnet50,3x", "resnet50,1x,2x"])
def test_unknown_arguments_are_refused(arguments):
    with pytest.raises(UserError, match=r"faster_rcnn_coco\.py: argument"):
        importlib.import_module("configs.faster_rcnn_coco").get_config(arguments)


def _image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 64, 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def _coco(folder):
    """Four images of train2017, two of val2017, in COCO's layout."""
    for split, numbers in (("train2017", range(1, 5)), ("val2017", range(5, 7))):
        images, annotations = [], []
        for number in numbers:
            name = f"{number:012}.jpg"
            _image(folder / split / name, number)
            images.append({"id": number, "file_name": name, "height": 48, "width": 64})
            polygon = [10, 10, 40, 12, 38, 40, 12, 38]
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": number % 2 + 1,
                    "bbox": [10, 10, 30, 30],
                    "area": 800,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        categories = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        file = folder / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def _voc(folder):
    xml = (
        "<annotation><filename>{}.jpg</filename><size><width>64</width><height>48</height></size>"
        "<object><name>dog</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>5</ymin>"
        "<xmax>40</xmax><ymax>40</ymax></bndbox></object></annotation>"
    )
    lists = {"VOC2007/trainval": (1, 2), "VOC2012/trainval": (3, 4), "VOC2007/test": (5, 6)}
    for place, numbers in lists.items():
        year, name = place.split("/")
        file = folder / year / "ImageSets" / "Main" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{number:06}\n" for number in numbers))
        for number in numbers:
            _image(folder / year / "JPEGImages" / f"{number:06}.jpg", number)
            file = folder / year / "Annotations" / f"{number:06}.xml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(xml.format(f"{number:06}"))


def _imagenet(folder):
    for split, number in (("train", 2), ("val", 1)):
        for label in ("n01", "n02"):
            for index in range(number):
                _image(folder / split / label / f"{index}.jpg", 100 + index)


# ImageNet first: the detector of VOC starts from its weights.
DRY_RUNS = ("imagenet", *DETECTION, "faster_rcnn_voc")
# Those that are evaluated too: masks, and VOC's own AP.
TESTED = ("cascade_mask_rcnn_coco", "faster_rcnn_voc")


def _command(tmp, script, name, network, *flags, workdir=None):
    return [
        f"scripts/{script}.py",
        f"--config=configs/{name}.py:{network}",
        f"--workdir={workdir or tmp / name}",
        *TINY,
        f"--config.pretrain.data.folder={tmp}/imagenet_images",
        f"--config.data.folder={tmp}/{'voc' if 'voc' in name else 'coco'}",
        *flags,
    ]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """Return a folder with COCO, VOC and ImageNet in their own layouts, a few noise images each."""
    tmp = tmp_path_factory.mktemp("recipes")
    _coco(tmp / "coco")
    _voc(tmp / "voc")
    _imagenet(tmp / "imagenet_images")
    arch = Arch("resnet_basic", (1, 1, 1, 1), (1, 2, 1, 3), (8, 8, 16, 16))
    (tmp / "found.json").write_text(arch.to_json())
    return tmp


@pytest.fixture(scope="module")
def runs(stand_ins):
    """Return the outcomes of a dry run of each recipe by name."""
    split = ["scripts/split_coco.py", "--number=2"]
    commands = [[*split, f"--annotations={stand_ins}/coco/annotations/instances_train2017.json"]]
    network = stand_ins / "found.json"
    for name in DRY_RUNS:
        if name == "imagenet":
            # Where the detectors' recipes look for it.
            flags = {"workdir": stand_ins / "imagenet_found"}
            run = _command(stand_ins, "pretrain", name, network, "--network=baseline", **flags)
        else:
            script = "evaluate" if name in TESTED else "train_detector"
            start = [] if "voc" in name else ["--config.init_from.baseline="]
            run = _command(stand_ins, script, name, network, *start)
        commands.append(run)
    return dict(zip(["split", *DRY_RUNS], run_commands(commands), strict=True))


@pytest.mark.parametrize("name", ["split", *DRY_RUNS])
def test_dry_run(runs, name):
    assert runs[name]["status"] == 0, runs[name]["stderr"][-3000:]


def test_what_dry_runs_leave(runs, stand_ins):
    def result(name):
        return json.loads((stand_ins / name / "baseline" / "test" / "result.json").read_text())

    assert {"AP", "AP50"} <= set(result("cascade_mask_rcnn_coco")["segm"])
    assert {"VOC07_AP50", "VOC_AP50"} <= set(result("faster_rcnn_voc"))
    assert "not filled: box_head, fpn, rpn" in runs["faster_rcnn_voc"]["stdout"]
    log = (stand_ins / "nas_fpn_coco" / "baseline" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] == 2
    annotations = stand_ins / "coco" / "annotations"
    parts = [
        json.loads((annotations / f"{name}.json").read_text())["images"]
        for name in ("archtrain", "archval")
    ]
    assert sorted(image["id"] for part in parts for image in part) == [1, 2, 3, 4]


@pytest.mark.campaign
def test_dry_run_of_the_search(runs, stand_ins):
    """Supernets classify first, are trained and searched; the networks are trained and tested."""
    assert runs["split"]["status"] == 0
    run = _command(
        stand_ins,
        "run_crnas",
        "search_coco",
        "resnet18",
        "--config.widths=(8,8,16,16)",
        "--config.supernet.widths=(8,8,16,16)",
        "--config.supernet.grids=((1,2),(2,),(2,),(2,3))",
        "--config.supernet.dilations=(1,2)",
        "--config.bootstrap=5",
    )
    (outcome,) = run_commands([run])
    assert outcome["status"] == 0, outcome["stderr"][-3000:]
    assert (stand_ins / "search_coco" / "result.json").exists()


def test_the_model_zoo_is_what_its_script_prints(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    model_zoo = importlib.import_module("model_zoo")
    assert (ROOT / "docs" / "model_zoo.md").read_text() == model_zoo.page()
    for table in model_zoo.TABLES:
        file, arguments = table.config
        for network in table.rows:
            config = _config(file, f"{network}{arguments}")
            assert config.detector.kind == table.detector
            assert model_settings.neck_options(config).kind == table.neck
