"""Multiply-adds and parameters of detectors by part, at test time."""

import functools
import itertools

from crnas_jax.arch import Architecture
from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.arch.cost.layers import CONVENTIONS, Cost, Layers, num_cells, reduced
from crnas_jax.errors import UserError

RCNNS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn")
DETECTORS = (*RCNNS, "retinanet")
CLASSIFIER = "classifier"
# "auto": none on a backbone that puts out a pyramid, FPN on any other.
NECKS = ("auto", "fpn", "nas_fpn", "none")
# RetinaNet's heads and what goes with them: torchvision's two, SpineNet's.
RETINA_HEADS = ("torchvision", "torchvision_v2", "spinenet")
# What RetinaNet computes p6 from.
P6_SOURCES = ("p5", "c5")
# Shapes of anchors at each place: three sides of three aspect ratios.
NUM_RETINA_ANCHORS = 9
_CASCADE_STAGES = 3
# Level that each of NAS-FPN's seven cells puts out; 0 is the finest of five.
_NAS_FPN_LEVELS = (1, 1, 0, 1, 2, 4, 3)


def resolve_neck(arch: Architecture, neck: str) -> str:
    """Return the neck that one of `NECKS` stands for on a backbone.

    Raises:
      UserError: the backbone does not fit it.
    """
    if neck == "auto":
        return "none" if arch.has_pyramid else "fpn"
    if arch.has_pyramid != (neck == "none"):
        problem = (
            f"{neck!r}, and {arch.family} puts out {'a' if arch.has_pyramid else 'no'} pyramid"
        )
        raise UserError("NeckOptions", "kind", problem, "use 'auto'")
    return neck


def require_levels(arch: Architecture, detector: str = RCNNS[0]) -> None:
    """Raise UserError where a detector needs more levels than a backbone's pyramid has."""
    if detector != "retinanet" and len(arch.levels) != 5:
        problem = f"levels {arch.levels}, and its proposals need five"
        raise UserError("detector", "kind", problem, "take RetinaNet, or another backbone")


def detector_parts(
    arch: Architecture,
    canvas: tuple[int, int],
    detector: str = "faster_rcnn",
    neck: str = "auto",
    num_classes: int = 80,
    num_rois: int = 1000,
    num_mask_rois: int = 100,
    convention: str = "macs",
    pyramid_channels: int = 0,
    head_channels: int = 1024,
    roi_pool_size: int = 7,
    mask_channels: int = 256,
    mask_convolutions: int = 4,
    mask_pool_size: int = 14,
    lowest_level: int = 3,
    stacks: int = 7,
    head: str = "torchvision",
    p6_from: str = "p5",
    head_convolutions: int = 4,
    separable: bool = False,
) -> dict[str, Cost]:
    """Count a detector at test time.

    Args:
      arch: backbone.
      canvas: (height, width) of the input, pixels.
      detector: one of `DETECTORS`.
      neck: one of `NECKS`.
      num_classes: number of object classes.
      num_rois: proposals that the box heads see.
      num_mask_rois: detections that the mask heads see.
      convention: one of `CONVENTIONS`; `thop2019` fixes both RoI counts.
      pyramid_channels: channels of neck and RPN; 0 for 256, with NAS-FPN 384. A backbone with a
        pyramid brings its own.
      head_channels: channels of the box heads' dense layers.
      roi_pool_size: side of the RoIs that the box heads see.
      mask_channels: channels of the mask head.
      mask_convolutions: number of its 3x3 convolutions.
      mask_pool_size: side of the RoIs that it sees.
      lowest_level: finest level of NAS-FPN: 3 for p3..p7, 2 for p2..p6.
      stacks: number of NAS-FPN's pyramids.
      head: RetinaNet's head, one of `RETINA_HEADS`.
      p6_from: what RetinaNet's FPN computes p6 from, one of `P6_SOURCES`.
      head_convolutions: convolutions in each tower of RetinaNet's head.
      separable: whether these are separable (SpineNet's head).

    Returns:
      Costs by part: `backbone`, `fpn` or `nas_fpn` where there is one, `rpn`, `box_head` (in a
      cascade `box_head1` .. `box_head3`) and, with masks, `mask_head` likewise; for RetinaNet
      `backbone`, neck, `head`.

    Raises:
      UserError: an unknown option, or a neck that does not fit the backbone or the detector.
    """
    for field, value, allowed in (
        ("detector", detector, DETECTORS),
        ("neck", neck, NECKS),
        ("convention", convention, CONVENTIONS),
        ("head", head, RETINA_HEADS),
        ("p6_from", p6_from, P6_SOURCES),
    ):
        if value not in allowed:
            raise UserError("cost", field, f"{value!r}", f"use one of {allowed}")
    neck = resolve_neck(arch, neck)
    layers = Layers(convention)
    if layers.thop:
        num_rois, num_mask_rois = 1000, 100
    width = pyramid_channels or (384 if neck == "nas_fpn" else 256)
    if neck == "none":
        require_levels(arch, detector)
        width, lowest_level = arch.out_channels[0], arch.levels[0]
    elif neck == "fpn" or detector == "retinanet":
        lowest_level = 3 if detector == "retinanet" else 2
    sizes = [canvas]
    for _ in range(7):
        sizes.append(reduced(sizes[-1]))
    cells = [num_cells(size) for size in sizes]  # by level: cells[2] for p2
    costs = {"backbone": backbone_cost(arch, canvas, convention)}
    if neck == "nas_fpn":
        costs["nas_fpn"] = _nas_fpn(layers, arch, cells, width, lowest_level, stacks)
    elif neck == "fpn":
        costs["fpn"] = _fpn(layers, arch.out_channels, cells, width, lowest_level)
    if detector == "retinanet":
        if neck == "fpn":
            source = width if p6_from == "p5" else arch.out_channels[-1]
            costs["fpn"] += layers.conv(source, width, 3, cells[6], bias=True)
            costs["fpn"] += layers.conv(width, width, 3, cells[7], bias=True)
        levels = arch.levels if neck == "none" else range(3, 8)
        num_level_cells = [cells[level] for level in levels]
        towers = (width, num_classes, head, head_convolutions, separable)
        return costs | {"head": _retina_head(layers, num_level_cells, *towers)}
    costs["rpn"] = _rpn(layers, width, sum(cells[lowest_level : lowest_level + 5]))
    cascade = detector.startswith("cascade")
    num_outputs = num_classes + 1 + 4 * (1 if cascade else num_classes + 1)
    box_head = (
        layers.dense(roi_pool_size**2 * width, head_channels, num_rois)
        + layers.dense(head_channels, head_channels, num_rois)
        + layers.dense(head_channels, num_outputs, num_rois)
    )
    names = [f"{stage + 1}" for stage in range(_CASCADE_STAGES)] if cascade else [""]
    costs |= {f"box_head{name}": box_head for name in names}
    if "mask" in detector:
        num_mask_cells = num_mask_rois * mask_pool_size**2
        channels = (width, *[mask_channels] * mask_convolutions)
        mask_head = _mask_head(layers, channels, num_classes, num_mask_cells)
        costs |= {f"mask_head{name}": mask_head for name in names}
    return costs


def classifier_parts(
    arch: Architecture, canvas: tuple[int, int], num_classes: int, convention: str = "macs"
) -> dict[str, Cost]:
    """Count a classifier on a canvas: `backbone`, and the dense layer `head`."""
    head = Layers(convention).dense(arch.out_channels[-1], num_classes, 1)
    return {"backbone": backbone_cost(arch, canvas, convention), "head": head}


def total(costs: dict[str, Cost]) -> Cost:
    """Return the sum over all parts."""
    return sum(costs.values(), Cost())


def _rpn(layers, width, num_level_cells):
    anchors = 3
    num_logits = 2 * anchors if layers.thop else anchors
    conv = functools.partial(layers.conv, num_cells=num_level_cells, bias=True)
    # thop's second logits count as work only: the network has one for each anchor.
    logits = Cost(conv(width, num_logits, 1).flops, conv(width, anchors, 1).params)
    return conv(width, width, 3) + conv(width, 4 * anchors, 1) + logits


def _fpn(layers, channels, cells, width, lowest_level):
    """Count the lateral and output convolutions of the levels that come from the backbone."""
    cost = Cost()
    for level in range(lowest_level, 6):
        cost += layers.conv(channels[level - 2], width, 1, cells[level], bias=True)
        cost += layers.conv(width, width, 3, cells[level], bias=True)
    return cost


def _nas_fpn(layers, arch, cells, width, lowest_level, stacks):
    cost = Cost()
    for level in range(lowest_level, 6):
        channels = arch.out_channels[level - 2]
        cost += layers.conv(channels, width, 1, cells[level], norm=True)
    for level in _NAS_FPN_LEVELS * stacks:
        cost += layers.conv(width, width, 3, cells[lowest_level + level], norm=True)
    return cost


def _mask_head(layers, channels, num_classes, cells):
    """Count 3x3 convolutions between `channels`, the up-sampling, and a mask for each class."""
    cost = Cost()
    for in_channels, out_channels in itertools.pairwise(channels):
        cost += layers.conv(in_channels, out_channels, 3, cells, bias=True)
    cost += layers.upsampling(channels[-1], channels[-1], cells)
    return cost + layers.conv(channels[-1], num_classes + 1, 1, 4 * cells, bias=True)


def _retina_head(layers, num_level_cells, width, num_classes, head, num_convolutions, separable):
    """Count the two towers and predictors of RetinaNet (arXiv 1708.02002) on all levels."""
    num_cells = sum(num_level_cells)
    # Group norm replaces the bias; SpineNet's has batch normalisation of each level behind it.
    has_bias = head != "torchvision_v2"
    norms = {"torchvision": 0, "torchvision_v2": 1, "spinenet": len(num_level_cells)}[head]

    def conv(out_channels, bias):
        if not separable:
            return layers.conv(width, out_channels, 3, num_cells, bias=bias)
        depthwise = layers.conv(width, width, 3, num_cells, groups=width)
        return depthwise + layers.conv(width, out_channels, 1, num_cells, bias=bias)

    cost = conv(NUM_RETINA_ANCHORS * num_classes, True) + conv(NUM_RETINA_ANCHORS * 4, True)
    for _ in range(2 * num_convolutions):
        cost += conv(width, has_bias) + Cost(0, 2 * norms * width)
    return cost
