"""The families of backbones: what their networks have in common, and the form of a block."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Family:
    """What the networks of a family have in common.

    Attributes:
      block: kind of its blocks: `basic`, `bottleneck` or `inverted` (residual).
      widths: per stage, of the standard network.
      strides: of the first block of each stage; the stem comes before (stride 4, of
        MobileNetV2 2).
      levels: the stages (0-based) that end with c2..c5.
      fixed: the stages that always have one block; the depth of the others is searched.
      expansion: output channels of a stage over its width.
      inner: channels of the 3x3 convolutions over the width (not of `inverted` blocks).
      groups: of the centre convolution of a bottleneck.
      stem: channels of the stem over the first width.
      tail: channels of a last 1x1 convolution over the last width; 0 for none.
    """

    block: str
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    levels: tuple[int, ...] = (0, 1, 2, 3)
    fixed: tuple[int, ...] = ()
    expansion: int = 1
    inner: int = 1
    groups: int = 1
    stem: int = 1
    tail: int = 0

    @property
    def searched(self) -> tuple[int, ...]:
        """The stages whose depth is chosen."""
        return tuple(stage for stage in range(len(self.widths)) if stage not in self.fixed)


FAMILIES = {
    "resnet_basic": Family("basic"),
    "resnet_bottleneck": Family("bottleneck", expansion=4),
    # ResNeXt (arXiv 1611.05431): at a width of 64, 32 groups of 4 channels.
    "resnext_32x4d": Family("bottleneck", expansion=4, inner=2, groups=32),
    # MobileNetV2 (arXiv 1801.04381, table 2): seven sequences of inverted residuals, of which the
    # first and the last have one block, then a 1x1 convolution.
    "mobilenet_v2": Family(
        "inverted",
        widths=(16, 24, 32, 64, 96, 160, 320),
        strides=(1, 2, 2, 2, 1, 2, 1),
        levels=(1, 2, 4, 6),
        fixed=(0, 6),
        stem=2,
        tail=4,
    ),
}
# Inner channels of MobileNetV2's blocks over their input's, but for the first block's.
INVERTED_EXPANSION = 6


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """One block.

    Attributes:
      kind: `basic` (3x3, 3x3), `bottleneck` (1x1, 3x3, 1x1) or `inverted` (1x1, depthwise 3x3,
        1x1; the first 1x1 is left out where it would not expand).
      in_channels: of the input.
      inner_channels: between its convolutions.
      out_channels: of the output.
      stride: of the block; on its first 3x3 convolution.
      groups: of the centre convolution.
    """

    kind: str
    in_channels: int
    inner_channels: int
    out_channels: int
    stride: int
    groups: int

    @property
    def projects(self) -> bool:
        """Whether a 1x1 convolution stands on the shortcut."""
        return self.kind != "inverted" and (
            self.stride > 1 or self.in_channels != self.out_channels
        )

    @property
    def expands(self) -> bool:
        """Whether an inverted residual begins with a 1x1 convolution."""
        return self.inner_channels != self.in_channels
