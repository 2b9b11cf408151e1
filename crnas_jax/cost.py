"""Multiply-adds and parameters of a detector, by part; no JAX."""

import dataclasses

from crnas_jax.arch import Arch


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds (`flops`) and parameters of one part or of a whole detector."""

    flops: int = 0
    params: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.params + other.params)


def _conv(channels, features, size, cells, bias=False, norm=True):
    """One convolution over `cells` outputs; a batch norm has two parameters a channel."""
    weights = size * size * channels * features
    return Cost(weights * cells, weights + features * bias + 2 * features * norm)


def backbone(arch: Arch, canvas: tuple[int, int]) -> Cost:
    """Stem and blocks on an input of `canvas` (height, width)."""
    height, width = (-(-side // 2) for side in canvas)
    total = _conv(3, arch.widths[0], 7, height * width)
    height, width = (-(-side // 2) for side in (height, width))
    channels = arch.widths[0]
    for stage, (depth, inner, outer) in enumerate(
        zip(arch.depths, arch.widths, arch.out_channels, strict=True)
    ):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            before = height * width
            if stride == 2:
                height, width = (-(-side // 2) for side in (height, width))
            cells = height * width
            if arch.family == "resnet_basic":
                total += _conv(channels, inner, 3, cells) + _conv(inner, outer, 3, cells)
            else:
                total += _conv(channels, inner, 1, before) + _conv(inner, inner, 3, cells)
                total += _conv(inner, outer, 1, cells)
            if not block and (stride == 2 or channels != outer):
                total += _conv(channels, outer, 1, cells)
            channels = outer
    return total


def faster_rcnn(
    arch: Arch,
    canvas: tuple[int, int],
    classes: int,
    rois: int,
    pyramid_channels: int = 256,
    head_channels: int = 1024,
    bins: int = 7,
    anchors: int = 3,
) -> dict[str, Cost]:
    """Cost by part: `backbone`, `fpn`, `rpn`, `box_head`.

    RoIAlign, pooling and additions are not counted.

    Args:
      arch: backbone.
      canvas: (height, width) of the input.
      classes: of objects.
      rois: proposals the box head sees.
      pyramid_channels: of FPN and RPN.
      head_channels: of the dense layers.
      bins: side of a pooled RoI.
      anchors: per cell.
    """
    cells, side = [], canvas
    for level in range(6):
        side = tuple(-(-length // 2) for length in side)
        if level:
            cells.append(side[0] * side[1])
    width = pyramid_channels
    fpn = Cost()
    for channels, number in zip(arch.out_channels, cells[:4], strict=True):
        fpn += _conv(channels, width, 1, number, bias=True, norm=False)
        fpn += _conv(width, width, 3, number, bias=True, norm=False)
    over_levels = [
        _conv(width, features, size, sum(cells), bias=True, norm=False)
        for features, size in ((width, 3), (anchors, 1), (4 * anchors, 1))
    ]
    outputs = 5 * (classes + 1)
    dense = (
        (bins * bins * width, head_channels),
        (head_channels, head_channels),
        (head_channels, outputs),
    )
    return {
        "backbone": backbone(arch, canvas),
        "fpn": fpn,
        "rpn": sum(over_levels, Cost()),
        "box_head": sum((_conv(a, b, 1, rois, bias=True, norm=False) for a, b in dense), Cost()),
    }
