"""Multiply-adds and parameters of detectors by part, at test time."""

import functools
import itertools

from crnas_jax.arch.cost.backbones import backbone_cost
from crnas_jax.arch.cost.layers import CONVENTIONS, Cost, Layers, num_cells, reduced
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError

DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet")
NECKS = ("fpn", "nas_fpn")
_CASCADE_STAGES = 3
# Level that each of NAS-FPN's seven cells puts out; 0 is the finest of five.
_NAS_FPN_LEVELS = (1, 1, 0, 1, 2, 4, 3)


def detector_parts(
    arch: Arch,
    canvas: tuple[int, int],
    detector: str = "faster_rcnn",
    neck: str = "fpn",
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
      pyramid_channels: channels of neck and RPN; 0 for 256, with NAS-FPN 384.
      head_channels: channels of the box heads' dense layers.
      roi_pool_size: side of the RoIs that the box heads see.
      mask_channels: channels of the mask head.
      mask_convolutions: number of its 3x3 convolutions.
      mask_pool_size: side of the RoIs that it sees.
      lowest_level: finest level of NAS-FPN: 3 for p3..p7, 2 for p2..p6.
      stacks: number of NAS-FPN's pyramids.

    Returns:
      Costs by part: `backbone`, `fpn` or `nas_fpn`, `rpn`, `box_head` (in a cascade `box_head1` ..
      `box_head3`) and, with masks, `mask_head` likewise; for RetinaNet `backbone`, `fpn`, `head`.

    Raises:
      UserError: an unknown detector, neck or convention, or RetinaNet on another neck than FPN.
    """
    for field, value, allowed in (
        ("detector", detector, DETECTORS),
        ("neck", neck, NECKS if detector != "retinanet" else NECKS[:1]),
        ("convention", convention, CONVENTIONS),
    ):
        if value not in allowed:
            raise UserError("cost", field, f"{value!r}", f"use one of {allowed}")
    layers = Layers(convention)
    if layers.thop:
        num_rois, num_mask_rois = 1000, 100
    width = pyramid_channels or (384 if neck == "nas_fpn" else 256)
    sizes = [canvas]
    for _ in range(7):
        sizes.append(reduced(sizes[-1]))
    cells = [num_cells(size) for size in sizes]  # by level: cells[2] for p2
    costs = {"backbone": backbone_cost(arch, canvas, convention)}
    if detector == "retinanet":
        return costs | _retinanet(layers, arch, cells, num_classes, width)
    if neck == "fpn":
        lowest_level = 2
        costs["fpn"] = _fpn(layers, arch.out_channels, cells[2:6], width)
    else:
        costs["nas_fpn"] = _nas_fpn(layers, arch, cells, width, lowest_level, stacks)
    costs["rpn"] = _rpn(layers, width, sum(cells[lowest_level : lowest_level + 5]))
    cascade = detector.startswith("cascade")
    num_outputs = num_classes + 1 + 4 * (1 if cascade else num_classes + 1)
    head = (
        layers.dense(roi_pool_size**2 * width, head_channels, num_rois)
        + layers.dense(head_channels, head_channels, num_rois)
        + layers.dense(head_channels, num_outputs, num_rois)
    )
    names = [f"{stage + 1}" for stage in range(_CASCADE_STAGES)] if cascade else [""]
    costs |= {f"box_head{name}": head for name in names}
    if "mask" in detector:
        num_mask_cells = num_mask_rois * mask_pool_size**2
        channels = (width, *[mask_channels] * mask_convolutions)
        mask_head = _mask_head(layers, channels, num_classes, num_mask_cells)
        costs |= {f"mask_head{name}": mask_head for name in names}
    return costs


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


def _fpn(layers, channels, cells, width):
    """Count the lateral and output convolutions of the levels that come from the backbone."""
    cost = Cost()
    for num_level_cells, level_channels in zip(cells, channels, strict=True):
        cost += layers.conv(level_channels, width, 1, num_level_cells, bias=True)
        cost += layers.conv(width, width, 3, num_level_cells, bias=True)
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


def _retinanet(layers, arch, cells, num_classes, width):
    """Count RetinaNet (arXiv 1708.02002) in torchvision's form: p3..p7, nine anchors."""
    anchors, num_level_cells = 9, sum(cells[3:8])
    fpn = _fpn(layers, arch.out_channels[1:], cells[3:6], width)
    fpn += layers.conv(width, width, 3, cells[6], bias=True)
    fpn += layers.conv(width, width, 3, cells[7], bias=True)
    conv = functools.partial(layers.conv, num_cells=num_level_cells, bias=True)
    head = conv(width, anchors * num_classes, 3) + conv(width, anchors * 4, 3)
    for _ in range(2 * 4):
        head += conv(width, width, 3)
    return {"fpn": fpn, "head": head}
