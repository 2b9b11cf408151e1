"""Costs against published figures and the parameters of real trees."""

import dataclasses
import math

import jax
import pytest
from conftest import tiny_options

from crnas_jax import cost, zoo
from crnas_jax.arch import Arch
from crnas_jax.models.build import Detector


@pytest.mark.parametrize(
    ("name", "giga"),
    [("resnet18", 31.460), ("resnet50", 70.899), ("resnet101", 135.295), ("cr_resnet50", 70.899)],
)
def test_backbones_at_800_x_1088(name, giga):
    assert cost.backbone(zoo.get(name), (800, 1088)).flops / 1e9 == pytest.approx(giga, abs=6e-4)


def test_parts_of_faster_rcnn_at_800_x_1088():
    parts = cost.faster_rcnn(zoo.get("resnet50"), (800, 1088), classes=80, rois=1000)
    assert parts["fpn"].flops / 1e9 == pytest.approx(49.299, abs=6e-4)
    assert parts["rpn"].flops / 1e9 == pytest.approx(43.023, abs=6e-4)
    assert parts["box_head"].flops / 1e9 == pytest.approx(14.308, abs=6e-4)


def test_parameters_equal_torchvisions_total():
    parts = cost.faster_rcnn(zoo.get("resnet50"), (800, 1088), classes=90, rois=1000)
    frozen_affine = 53120
    assert sum(part.params for part in parts.values()) - frozen_affine == 41755286


@pytest.mark.parametrize("family", ["resnet_basic", "resnet_bottleneck"])
def test_parameters_equal_the_tree(family):
    arch = Arch(family, (1, 2, 1, 3), widths=(8, 8, 16, 16))
    options = tiny_options()
    shapes = jax.eval_shape(Detector(arch, options).init, jax.random.key(0))
    parts = cost.faster_rcnn(
        arch, (64, 64), 3, 20, options.pyramid_channels, options.box.head_channels
    )
    counted = dict.fromkeys(parts, 0)
    for name, tree in shapes["params"].items():
        counted[name] = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    assert counted == {name: part.params for name, part in parts.items()}


def test_moving_blocks_keeps_the_cost():
    arch = zoo.get("resnet50")
    moved = dataclasses.replace(arch, depths=(1, 3, 5, 7), dilations=())
    assert cost.backbone(moved, (800, 1088)).flops == cost.backbone(arch, (800, 1088)).flops
