"""Multiply-adds and parameters of a detector, by part; no JAX.

RoIAlign, pooling, additions, up-sampling and activations are not counted. Two conventions:

- `macs`: one for each multiply-add of a convolution or dense layer; the true work.
- `thop2019`: the rules of pytorch-OpCounter in August 2019, which reproduce the FLOPs of the CR-NAS
  tables: also 1 for each output with a bias and 4 for each normalised value, a dense layer twice, a
  transposed convolution four times, 1000 RoIs in the box head and 100 in the mask head, two logits
  for each anchor, and a 1x1 expansion in MobileNetV2's first block, which the network has not.
"""

import dataclasses
import functools

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError

CONVENTIONS = ("macs", "thop2019")
DETECTORS = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "cascade_mask_rcnn", "retinanet")
NECKS = ("fpn", "nas_fpn")
_CASCADE = 3
# Of NAS-FPN's seven cells the level each puts out, 0 for the finest of five.
_NAS_FPN_LEVELS = (1, 1, 0, 1, 2, 4, 3)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds (`flops`) and parameters of one part or of a whole detector."""

    flops: int = 0
    params: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.params + other.params)


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Costs of single layers under one convention."""

    thop: bool

    def conv(self, channels, features, size, cells, *, groups=1, bias=False, norm=False):
        """One convolution over `cells` outputs, with the batch normalisation behind it."""
        weights = size * size * (channels // groups) * features
        flops = weights * cells
        if self.thop:
            flops += features * cells * (bias + 4 * norm)
        return Cost(flops, weights + features * bias + 2 * features * norm)

    def dense(self, channels, features, rows):
        weights = channels * features
        flops = (2 * channels - 1) * features * rows if self.thop else weights * rows
        return Cost(flops, weights + features)

    def doubling(self, channels, features, cells):
        """A transposed 2x2 convolution of stride 2 on `cells` inputs."""
        weights = 4 * channels * features
        flops = 4 * cells * (weights + features) if self.thop else weights * cells
        return Cost(flops, weights + features)


def backbone(arch: Arch, canvas: tuple[int, int], convention: str = "macs") -> Cost:
    """Stem, blocks and tail on an input of `canvas` (height, width)."""
    stem, stages, tail = backbone_parts(arch, canvas, convention)
    return sum((block for stage in stages for block in stage), stem + tail)


def backbone_parts(
    arch: Arch, canvas: tuple[int, int], convention: str = "macs"
) -> tuple[Cost, list[list[Cost]], Cost]:
    """The stem, every block stage by stage, and the tail."""
    layers = _Layers(convention == "thop2019")
    conv = functools.partial(layers.conv, norm=True)
    inverted = arch.traits.block == "inverted"
    side = _halved(canvas)
    stem = conv(3, arch.stem_channels, 3 if inverted else 7, _cells(side))
    side = side if inverted else _halved(side)
    stages = []
    for stage, depth in enumerate(arch.stage_depths):
        blocks = []
        for index in range(depth):
            shape = arch.block(stage, first=index == 0)
            before, side = side, _halved(side) if shape.stride == 2 else side
            sizes = (_cells(before), _cells(side))
            cost = _block(conv, shape, *sizes)
            if layers.thop and inverted and not shape.expands:
                imaginary = conv(shape.in_channels, shape.inner_channels, 1, sizes[0])
                cost += Cost(imaginary.flops)
            blocks.append(cost)
        stages.append(blocks)
    tail = Cost()
    if arch.tail_channels:
        channels = arch.traits.expansion * arch.widths[-1]
        tail = conv(channels, arch.tail_channels, 1, _cells(side))
    return stem, stages, tail


def _block(conv, shape, before, cells):
    inner, outer = shape.inner_channels, shape.out_channels
    if shape.kind == "basic":
        total = conv(shape.in_channels, inner, 3, cells) + conv(inner, outer, 3, cells)
    else:
        total = conv(inner, inner, 3, cells, groups=shape.groups) + conv(inner, outer, 1, cells)
        if shape.kind == "bottleneck" or shape.expands:
            total += conv(shape.in_channels, inner, 1, before)
    if shape.projects:
        total += conv(shape.in_channels, outer, 1, cells)
    return total


def parts(
    arch: Arch,
    canvas: tuple[int, int],
    detector: str = "faster_rcnn",
    neck: str = "fpn",
    classes: int = 80,
    rois: int = 1000,
    mask_rois: int = 100,
    convention: str = "macs",
    pyramid_channels: int = 0,
    head_channels: int = 1024,
    mask_channels: int = 256,
    lowest_level: int = 3,
    stacks: int = 7,
) -> dict[str, Cost]:
    """Cost of a detector at test time by part: `backbone`, `fpn` or `nas_fpn`, `rpn`, `box_head`
    (of a cascade `box_head1` .. `box_head3`) and, with masks, `mask_head` likewise; of RetinaNet
    `backbone`, `fpn`, `head`.

    Args:
      arch: backbone.
      canvas: (height, width) of the input.
      detector: of `DETECTORS`.
      neck: of `NECKS`.
      classes: of objects.
      rois: proposals the box heads see.
      mask_rois: detections the mask heads see.
      convention: of `CONVENTIONS`; `thop2019` fixes both RoI counts.
      pyramid_channels: of neck and RPN; 0 for 256, of NAS-FPN 384.
      head_channels: of the dense layers.
      mask_channels: of the mask head.
      lowest_level: of NAS-FPN: 3 for p3..p7, 2 for p2..p6.
      stacks: of NAS-FPN.

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
    layers = _Layers(convention == "thop2019")
    if layers.thop:
        rois, mask_rois = 1000, 100
    width = pyramid_channels or (384 if neck == "nas_fpn" else 256)
    sides = [canvas]
    for _ in range(7):
        sides.append(_halved(sides[-1]))
    cells = [_cells(side) for side in sides]  # by level: cells[2] of p2
    found = {"backbone": backbone(arch, canvas, convention)}
    if detector == "retinanet":
        return found | _retinanet(layers, arch, cells, classes, width)
    if neck == "fpn":
        lowest_level = 2
        found["fpn"] = _fpn(layers, arch.out_channels, cells[2:6], width)
    else:
        found["nas_fpn"] = _nas_fpn(layers, arch, cells, width, lowest_level, stacks)
    anchors, level_cells = 3, sum(cells[lowest_level : lowest_level + 5])
    logits = 2 * anchors if layers.thop else anchors
    over_levels = functools.partial(layers.conv, cells=level_cells, bias=True)
    rpn = over_levels(width, width, 3) + over_levels(width, 4 * anchors, 1)
    # The second logits are counted as work only: the network has one an anchor.
    rpn += Cost(over_levels(width, logits, 1).flops, over_levels(width, anchors, 1).params)
    found["rpn"] = rpn
    cascade = detector.startswith("cascade")
    outputs = classes + 1 + 4 * (1 if cascade else classes + 1)
    head = (
        layers.dense(49 * width, head_channels, rois)
        + layers.dense(head_channels, head_channels, rois)
        + layers.dense(head_channels, outputs, rois)
    )
    names = [f"{stage + 1}" for stage in range(_CASCADE)] if cascade else [""]
    found |= {f"box_head{name}": head for name in names}
    if "mask" in detector:
        mask = _mask_head(layers, width, mask_channels, classes, mask_rois)
        found |= {f"mask_head{name}": mask for name in names}
    return found


def total(costs: dict[str, Cost]) -> Cost:
    """The sum of all parts."""
    return sum(costs.values(), Cost())


def _fpn(layers, channels, cells, width):
    """Lateral and output convolutions of the levels that come from the backbone."""
    found = Cost()
    for number, level_channels in zip(cells, channels, strict=True):
        found += layers.conv(level_channels, width, 1, number, bias=True)
        found += layers.conv(width, width, 3, number, bias=True)
    return found


def _nas_fpn(layers, arch, cells, width, lowest, stacks):
    found = Cost()
    for level in range(lowest, 6):
        channels = arch.out_channels[level - 2]
        found += layers.conv(channels, width, 1, cells[level], norm=True)
    for level in _NAS_FPN_LEVELS * stacks:
        found += layers.conv(width, width, 3, cells[lowest + level], norm=True)
    return found


def _mask_head(layers, width, inner, classes, rois, bins=14):
    cells = rois * bins * bins
    found = layers.conv(width, inner, 3, cells, bias=True)
    for _ in range(3):
        found += layers.conv(inner, inner, 3, cells, bias=True)
    found += layers.doubling(inner, inner, cells)
    return found + layers.conv(inner, classes + 1, 1, 4 * cells, bias=True)


def _retinanet(layers, arch, cells, classes, width):
    """RetinaNet (arXiv 1708.02002) as torchvision has it: p3..p7, p6 from p5, nine anchors."""
    anchors, level_cells = 9, sum(cells[3:8])
    fpn = _fpn(layers, arch.out_channels[1:], cells[3:6], width)
    fpn += layers.conv(width, width, 3, cells[6], bias=True)
    fpn += layers.conv(width, width, 3, cells[7], bias=True)
    conv = functools.partial(layers.conv, cells=level_cells, bias=True)
    head = conv(width, anchors * classes, 3) + conv(width, anchors * 4, 3)
    for _ in range(2 * 4):
        head += conv(width, width, 3)
    return {"fpn": fpn, "head": head}


def _halved(side):
    return tuple(-(-length // 2) for length in side)


def _cells(side):
    return side[0] * side[1]
