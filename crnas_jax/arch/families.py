"""The families of backbones: one row each, and the shapes of their stems, blocks and tails.

A row says everything that the rest of the package asks about a family. A new family is a row here,
a module with its layers in `models/backbones/`, and an entry in the table of
`models/backbones/staged.py`.
"""

import dataclasses

# Candidate depths and block costs of the paper's search spaces (section 3.2 and appendix).
_RESNET_GRIDS = (
    tuple(range(1, 11)),
    tuple(range(1, 11)),
    (2, 3, 5, 6, 9, 11, 14, 17, 20, 23),
    (2, 3, 4, 6, 7, 9, 11, 13, 15, 17),
)
_MOBILENET_GRIDS = (*[tuple(range(1, 6))] * 2, tuple(range(3, 8)), *[tuple(range(2, 7))] * 2)
# The paper's weights; they are not the ratios of the blocks' true FLOPs.
_MOBILENET_COSTS = (1.5, 1.0, 1.0, 0.75, 1.25)
# Channels inside MobileNetV2's blocks over their input's, except for the first block's.
_INVERTED_EXPANSION = 6


@dataclasses.dataclass(frozen=True)
class ConvShape:
    """Shape of one convolution, which a batch normalisation follows.

    Attributes:
      name: the modules are called `<prefix>conv<name>` and `<prefix>bn<name>`.
      in_channels: input channels.
      out_channels: output channels.
      size: side of the kernel.
      stride: stride of the output.
      groups: number of channel groups.
      prefix: see `name`.
    """

    name: str
    in_channels: int
    out_channels: int
    size: int
    stride: int = 1
    groups: int = 1
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class StemShape:
    """Shape of the layers before the first stage: a strided convolution, perhaps a max-pooling.

    Attributes:
      channels: output channels.
      size: side of the convolution's kernel; its stride is 2.
      pool_stride: stride of the max-pooling after it; 1 for none.
    """

    channels: int
    size: int
    pool_stride: int

    projection = None
    squeeze = 0
    uncounted_expansion = None

    @property
    def convolutions(self) -> tuple[ConvShape, ...]:
        """The convolutions in order."""
        return (ConvShape("1", 3, self.channels, self.size, 2),)


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Shape of one block.

    Attributes:
      kind: `basic` (3x3, 3x3), `bottleneck` (1x1, 3x3, 1x1) or `inverted` (1x1, depthwise 3x3,
        1x1; the first 1x1 is left out where it would not expand).
      in_channels: input channels.
      inner_channels: channels between its convolutions.
      out_channels: output channels.
      stride: stride of its first 3x3 convolution.
      groups: number of groups in its centre convolution.
      squeeze: units of a squeeze-excitation (arXiv 1709.01507) behind the centre convolution; 0 for
        none.
    """

    kind: str
    in_channels: int
    inner_channels: int
    out_channels: int
    stride: int
    groups: int
    squeeze: int = 0

    pool_stride = 1

    @property
    def convolutions(self) -> tuple[ConvShape, ...]:
        """The convolutions of the main path in order; the searched one is named "2"."""
        inner, out = self.inner_channels, self.out_channels
        if self.kind == "basic":
            first = ConvShape("1", self.in_channels, inner, 3, self.stride)
            return first, ConvShape("2", inner, out, 3)
        expansion = ConvShape("1", self.in_channels, inner, 1)
        centre = ConvShape("2", inner, inner, 3, self.stride, self.groups)
        last = ConvShape("3", inner, out, 1)
        return (expansion, centre, last) if self.expands else (centre, last)

    @property
    def projection(self) -> ConvShape | None:
        """The 1x1 convolution on the shortcut, None where there is none."""
        changes = self.stride > 1 or self.in_channels != self.out_channels
        if self.kind == "inverted" or not changes:
            return None
        return ConvShape(
            "", self.in_channels, self.out_channels, 1, self.stride, prefix="downsample_"
        )

    @property
    def expands(self) -> bool:
        """Whether the main path begins with a 1x1 convolution (bottleneck, inverted)."""
        return self.kind != "inverted" or self.inner_channels != self.in_channels

    @property
    def has_identity(self) -> bool:
        """Whether the input itself is the shortcut."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def uncounted_expansion(self) -> ConvShape | None:
        """The 1x1 convolution that an inverted block would have if it expanded, else None."""
        return None if self.expands else ConvShape("1", self.in_channels, self.inner_channels, 1)


@dataclasses.dataclass(frozen=True)
class TailShape:
    """Shape of the 1x1 convolution after the last stage.

    Attributes:
      in_channels: input channels.
      channels: output channels.
    """

    in_channels: int
    channels: int

    pool_stride = 1
    projection = None
    squeeze = 0
    uncounted_expansion = None

    @property
    def convolutions(self) -> tuple[ConvShape, ...]:
        """The convolutions in order."""
        return (ConvShape("1", self.in_channels, self.channels, 1),)


@dataclasses.dataclass(frozen=True)
class Family:
    """What the networks of a family have in common.

    Attributes:
      design: key of the Flax layers in `models/backbones/staged.py`.
      block: kind of its blocks: `basic`, `bottleneck` or `inverted`.
      widths: widths of the standard network's stages.
      strides: stride of each stage's first block.
      levels: indices of the stages that end with c2..c5.
      fixed_stages: indices of the stages that always have one block; the depths of the others are
        searched.
      expansion: output channels of a stage over its width.
      inner: channels of the 3x3 convolutions over the width (`basic` and `bottleneck`).
      groups: groups in the centre convolution of a bottleneck.
      stem: channels of the stem over the first width.
      stem_size: side of the stem's kernel.
      stem_pool_stride: stride of the stem's max-pooling; 1 for none.
      tail: channels of a last 1x1 convolution over the last width; 0 for none.
      depth_grids: the paper's candidate depths for each searched stage.
      block_costs: cost of a block in each searched stage, in blocks. In a ResNet all blocks cost
        the same FLOPs, since the resolution halves where the width doubles.
      supernet_divisor: the paper's supernet has the network's widths divided by it.
      activation: activation that the networks are trained with unless another is asked for.
    """

    design: str
    block: str
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    levels: tuple[int, ...] = (0, 1, 2, 3)
    fixed_stages: tuple[int, ...] = ()
    expansion: int = 1
    inner: int = 1
    groups: int = 1
    stem: int = 1
    stem_size: int = 7
    stem_pool_stride: int = 2
    tail: int = 0
    depth_grids: tuple[tuple[int, ...], ...] = _RESNET_GRIDS
    block_costs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    supernet_divisor: int = 2
    activation: str = "relu"

    @property
    def searched_stages(self) -> tuple[int, ...]:
        """Indices of the stages with a searched depth."""
        stages = range(len(self.widths))
        return tuple(stage for stage in stages if stage not in self.fixed_stages)

    def block_shape(self, widths: tuple[int, ...], stage: int, first: bool) -> BlockShape:
        """Return the shape of the first or a later block of a stage (0-based)."""
        outer = self.expansion * widths[stage]
        before = self.expansion * widths[stage - 1] if stage else self.stem * widths[0]
        before = before if first else outer
        if self.block == "inverted":
            factor = 1 if stage == 0 else _INVERTED_EXPANSION
            inner = groups = factor * before
        else:
            inner, groups = self.inner * widths[stage], self.groups
        stride = self.strides[stage] if first else 1
        return BlockShape(self.block, before, inner, outer, stride, groups)


FAMILIES = {
    "resnet_basic": Family("resnet", "basic"),
    "resnet_bottleneck": Family("resnet", "bottleneck", expansion=4),
    # ResNeXt (arXiv 1611.05431): at a width of 64, 32 groups of 4 channels.
    "resnext_32x4d": Family("resnet", "bottleneck", expansion=4, inner=2, groups=32),
    # MobileNetV2 (arXiv 1801.04381, table 2): seven sequences of inverted residuals, the first and
    # the last with one block, then a 1x1 convolution.
    "mobilenet_v2": Family(
        "mobilenet_v2",
        "inverted",
        widths=(16, 24, 32, 64, 96, 160, 320),
        strides=(1, 2, 2, 2, 1, 2, 1),
        levels=(1, 2, 4, 6),
        fixed_stages=(0, 6),
        stem=2,
        stem_size=3,
        stem_pool_stride=1,
        tail=4,
        depth_grids=_MOBILENET_GRIDS,
        block_costs=_MOBILENET_COSTS,
        supernet_divisor=1,
        activation="relu6",
    ),
}
