"""Costs against published figures, the count of XLA, and the parameters of real trees."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import pytest
from helpers import run_commands, tiny_spinenet

from configs import base
from crnas_jax.arch import zoo
from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.arch.cost.detectors import RETINA_HEADS, classifier_parts, detector_parts, total
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.box_head import CASCADE_STAGES, BoxHeadOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import BN_RUNNING, Normalization
from crnas_jax.models.rcnn import DetectorOptions, NeckOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.settings import models as model_settings

CANVAS = (800, 1088)
# CR-NAS, table 1, in G. The paper prints the figures of ResNet-50 and CR-ResNet-50 in each other's
# place, and those of ResNet-101 and CR-ResNet-101 too, as the convolutions and table 3 show.
TABLE_1 = {
    "mobilenet_v2": 121.1,
    "cr_mobilenet_v2": 121.4,
    "resnet18": 147.7,
    "cr_resnet18": 147.6,
    "resnet50": 192.7,
    "cr_resnet50": 192.5,
    "resnet101": 257.5,
    "cr_resnet101": 257.3,
}
TABLE_3 = {
    "mobilenet_v2": 189.5,
    "cr_mobilenet_v2": 189.8,
    "resnet50": 261.2,
    "cr_resnet50": 261.0,
    "resnet101": 325.9,
    "cr_resnet101": 325.8,
}
CASCADE = BoxHeadOptions(stages=CASCADE_STAGES, class_agnostic=True)


def _giga(name, **options):
    return total(detector_parts(zoo.get(name), CANVAS, **options)).flops / 1e9


@pytest.mark.parametrize(("name", "giga"), TABLE_1.items())
def test_the_papers_convention_reproduces_table_1(name, giga):
    assert _giga(name, convention="thop2019") == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize(("name", "giga"), TABLE_3.items())
def test_the_papers_convention_reproduces_table_3(name, giga):
    assert _giga(name, detector="mask_rcnn", convention="thop2019") == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize(("name", "giga"), TABLE_1.items())
def test_multiply_adds_with_2000_rois_are_near_table_1(name, giga):
    assert _giga(name, num_rois=2000) == pytest.approx(giga, rel=0.0075)


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("resnet18", 31.460),
        ("resnet50", 70.899),
        ("resnet101", 135.295),
        ("cr_resnet50", 70.899),
        ("mobilenet_v2", 5.195),
        ("cr_mobilenet_v2", 5.488),
    ],
)
def test_backbones_at_800_x_1088(name, giga):
    assert backbone_cost(zoo.get(name), CANVAS).flops / 1e9 == pytest.approx(giga, abs=6e-4)


def test_parts_at_800_x_1088():
    parts = detector_parts(zoo.get("resnet50"), CANVAS, "mask_rcnn")
    expected = {"fpn": 49.299, "rpn": 43.023, "box_head": 14.308, "mask_head": 53.01}
    assert {name: parts[name].flops / 1e9 for name in expected} == pytest.approx(expected, abs=6e-3)
    for level, giga in ((3, 236.3), (2, 935.9)):
        parts = detector_parts(zoo.get("resnet50"), CANVAS, neck="nas_fpn", lowest_level=level)
        assert parts["nas_fpn"].flops / 1e9 == pytest.approx(giga, abs=0.06)


@pytest.mark.parametrize(
    ("detector", "num_classes", "params"),
    [("faster_rcnn", 90, 41755286), ("mask_rcnn", 90, 44401393), ("retinanet", 91, 34014999)],
)
def test_parameters_equal_torchvisions_total(detector, num_classes, params):
    frozen_affine = 53120
    parts = detector_parts(zoo.get("resnet50"), CANVAS, detector, num_classes=num_classes)
    assert total(parts).params - frozen_affine == params


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet18", 11689512),
        ("resnet50", 25557032),
        ("resnet101", 44549160),
        ("resnext50_32x4d", 25028904),
        ("mobilenet_v2", 3504872),
    ],
)
def test_classifiers_have_torchvisions_parameters(name, params):
    shapes = Classifier(zoo.get(name), ClassifierOptions(1000)).shapes["params"]
    assert _count(shapes) == params
    assert _count(shapes["backbone"]) == backbone_cost(zoo.get(name), CANVAS).params


def _count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("detector", "neck", "options"),
    [
        ("faster_rcnn", "fpn", DetectorOptions(80)),
        ("mask_rcnn", "fpn", DetectorOptions(80, mask=MaskHeadOptions())),
        ("cascade_mask_rcnn", "fpn", DetectorOptions(80, box=CASCADE, mask=MaskHeadOptions())),
        ("faster_rcnn", "nas_fpn", DetectorOptions(80, 384, neck=NeckOptions("nas_fpn", 1, 3))),
    ],
)
def test_parameters_equal_the_tree(detector, neck, options):
    arch = Arch("resnext_32x4d", (1, 2, 1, 3), widths=(16, 16, 32, 32))
    shapes = Detector(arch, options).shapes["params"]
    parts = detector_parts(arch, (64, 64), detector, neck, stacks=options.neck.stacks)
    assert {name: _count(tree) for name, tree in shapes.items()} == {
        name: part.params for name, part in parts.items()
    }


def test_the_cost_follows_the_sizes_of_the_heads():
    config = base.get_config()
    config.detector.kind = "mask_rcnn"
    with config.unlocked():
        config.detector.update(roi_pool_size=5, mask_num_convolutions=2, mask_channels=24)
    arch = zoo.get("resnet18")
    counted = model_settings.detector_cost(config, arch, (64, 64), num_classes=7)
    shapes = model_settings.detector(config, arch, num_classes=7).shapes["params"]
    assert counted.params == _count(shapes)
    parts = [
        detector_parts(arch, (64, 64), "mask_rcnn", mask_pool_size=size)["mask_head"].flops
        for size in (7, 14)
    ]
    assert parts[1] == 4 * parts[0]


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2"])
def test_dense_parts_agree_with_xlas_count(name):
    """XLA counts two operations for a multiply-add, and none for the padding."""
    detector = Detector(zoo.get(name), DetectorOptions(80))
    image = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.float32)

    def pyramid(module, image):
        norm = Normalization(BN_RUNNING, jnp.ones(1))
        return module.rpn(module.fpn(module.backbone(image, None, norm)))

    dense = functools.partial(detector.module.apply, method=pyramid)
    counted = jax.jit(dense).lower(detector.shapes, image).cost_analysis()["flops"] / 2
    parts = detector_parts(zoo.get(name), CANVAS)
    expected = sum(parts[part].flops for part in ("backbone", "fpn", "rpn"))
    assert expected == pytest.approx(counted, rel=0.02)


def test_heads_agree_with_xlas_count():
    arch, options = zoo.get("resnet18"), DetectorOptions(80, mask=MaskHeadOptions())
    detector, parts = Detector(arch, options), detector_parts(arch, CANVAS, "mask_rcnn")
    # Four 3x3 convolutions on 14 x 14 cells read much padding, which XLA leaves out.
    padding = 4 * 256 * 256 * 100 * (3 * 3 * 14 * 14 - (3 * 14 - 2) ** 2)
    heads = (("box_head", 1000, 7, 0), ("mask_head", 100, 14, padding))
    for part, num_rois, pool_size, left_out in heads:
        pooled = jax.ShapeDtypeStruct((num_rois, pool_size, pool_size, 256), jnp.float32)

        def head(module, pooled, part=part):
            return getattr(module, f"{part}s")[0](pooled)

        run = functools.partial(detector.module.apply, method=head)
        counted = jax.jit(run).lower(detector.shapes, pooled).cost_analysis()["flops"] / 2
        assert parts[part].flops - left_out == pytest.approx(counted, rel=0.02)


def test_moving_blocks_keeps_the_cost():
    assert (
        backbone_cost(zoo.get("cr_resnet50"), CANVAS).flops
        == backbone_cost(zoo.get("resnet50"), CANVAS).flops
    )


def test_unknown_options_are_refused():
    for options in (
        {"detector": "yolo"},
        {"neck": "pan"},
        {"convention": "flops"},
        {"detector": "retinanet", "head": "yolo"},
        {"detector": "retinanet", "p6_from": "p4"},
        {"neck": "none"},
    ):
        with pytest.raises(UserError):
            detector_parts(zoo.get("resnet18"), CANVAS, **options)


def test_the_script_prints_one_line_of_json():
    script = ["scripts/flops.py", "--arch=resnet50", "--json"]
    good, size, arch = run_commands(
        [[*script, "--rois=2000"], [*script, "--size=800"], ["scripts/flops.py", "--arch=resnet5"]]
    )
    (line,) = good["stdout"].splitlines()
    row = json.loads(line)
    assert row["flops"] == sum(part["flops"] for part in row["parts"].values()) == 191838886144
    assert row["params"] == sum(part["params"] for part in row["parts"].values())
    for outcome, message in ((size, "--size"), (arch, "did you mean resnet50")):
        assert outcome["status"] == 2
        assert message in outcome["stderr"]


@pytest.mark.parametrize(
    ("name", "side", "giga", "mega"),
    [
        ("spinenet49", 640, 85.4, 28.5),
        ("spinenet49", 896, 167.4, 28.5),
        ("spinenet96", 1024, 265.4, 43.0),
        ("spinenet143", 1280, 524.0, 67.0),
        ("spinenet190", 1280, 1885.0, 163.6),
        ("r0_sp53", 640, 94.8, None),
        ("r23_sp30", 640, 95.5, None),
    ],
)
def test_spinenets_retinanets_are_within_3_per_mille_of_their_figures(name, side, giga, mega):
    """RetinaNet with its own head, 91 outputs an anchor (SpineNet's MODEL_ZOO; R0, R23: ours)."""
    arch = zoo.get(name)
    options = {"head": "spinenet", "head_convolutions": zoo.published_head(arch, "spinenet")[0]}
    cost = total(detector_parts(arch, (side, side), "retinanet", num_classes=91, **options))
    assert cost.flops / 1e9 == pytest.approx(giga, rel=0.003)
    if mega:
        assert cost.params / 1e6 == pytest.approx(mega, abs=0.06)


def test_the_mobile_spinenet_and_the_resnet_beside_it():
    arch = zoo.get("spinenet49_mobile")
    shared = {"detector": "retinanet", "num_classes": 91}
    cost = total(detector_parts(arch, (384, 384), head="spinenet", separable=True, **shared))
    assert cost.flops / 1e9 == pytest.approx(0.981, rel=0.01)
    assert cost.params / 1e6 == pytest.approx(2.338, rel=0.01)
    for head in ("torchvision", "spinenet"):
        resnet = detector_parts(zoo.get("resnet50"), (640, 640), head=head, **shared)
        assert total(resnet).flops / 1e9 == pytest.approx(97.0, rel=0.005)
        assert total(resnet).params / 1e6 == pytest.approx(34.0, rel=0.005)
        from_c5 = detector_parts(zoo.get("resnet50"), (640, 640), head=head, p6_from="c5", **shared)
        assert total(from_c5).params / 1e6 == pytest.approx(38.2, rel=0.005)


@pytest.mark.parametrize(
    ("name", "giga", "imagenet", "inaturalist"),
    [
        ("spinenet49", "3.5", "22.1", "23.1"),
        ("spinenet96", "5.7", "36.5", "37.6"),
        ("spinenet143", "9.1", "60.5", "61.6"),
        ("spinenet190", "19.1", "127.1", "129.2"),
    ],
)
def test_spinenets_classifiers_have_the_printed_figures(name, giga, imagenet, inaturalist):
    for num_classes, mega in ((1001, imagenet), (5089, inaturalist)):
        cost = total(classifier_parts(zoo.get(name), (224, 224), num_classes))
        assert (f"{cost.flops / 1e9:.1f}", f"{cost.params / 1e6:.1f}") == (giga, mega)


@pytest.mark.parametrize("family", ["spinenet", "spinenet_mobile", "resnet"])
@pytest.mark.parametrize("form", RETINA_HEADS)
def test_parameters_of_a_retinanet_equal_the_tree(family, form):
    arch = zoo.get("resnet18") if family == "resnet" else tiny_spinenet(family)
    arch = dataclasses.replace(arch, **({} if family == "resnet" else {"endpoint_channels": 32}))
    head = RetinaHeadOptions(form, 2)
    detector = Detector(arch, RetinaNetOptions(7, 32, head, p6_from="c5"))
    parts = detector_parts(
        arch,
        (64, 64),
        "retinanet",
        num_classes=7,
        pyramid_channels=32,
        head=form,
        p6_from="c5",
        head_convolutions=2,
        separable=family == "spinenet_mobile" and form == "spinenet",
    )
    counted = {name: _count(tree) for name, tree in detector.shapes["params"].items()}
    assert counted == {name: part.params for name, part in parts.items()}
    config = base.get_config()
    config.detector.update(kind="retinanet", head=form, p6_from="c5", head_convolutions=2)
    config.detector.pyramid_channels = 32
    cost = model_settings.detector_cost(config, arch, (64, 64), num_classes=7)
    assert cost == total(parts)
    if arch.has_pyramid:
        shapes = Classifier(arch, ClassifierOptions(5)).shapes["params"]
        assert _count(shapes) == total(classifier_parts(arch, (64, 64), 5)).params
