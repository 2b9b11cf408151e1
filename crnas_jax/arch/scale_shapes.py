"""The families of scale-permuted networks, and the shapes of their blocks and resampling."""

import dataclasses
import functools

from crnas_jax.arch.families import BlockShape, ConvShape


@dataclasses.dataclass(frozen=True)
class ScalePermutedFamily:
    """What the networks of a family have in common.

    Attributes:
      widths: width of a block by its level, before scaling.
      kinds: kinds of its blocks, and the kind that `BlockShape` gives each; first the stem's.
      stem_channels: channels of the stem's convolution, before scaling.
      stem_is_scaled: whether the width scale applies to them.
      stem_size: side of the stem's kernel; its stride is 2.
      stem_pool_stride: stride of the max-pooling after it; 1 for none.
      activation: activation that the networks are trained with unless another is asked for.
    """

    widths: tuple[int, ...]
    kinds: tuple[tuple[str, str], ...]
    stem_channels: int
    stem_is_scaled: bool
    stem_size: int
    stem_pool_stride: int
    activation: str

    @property
    def stem_kind(self) -> str:
        """Kind of the stem's blocks."""
        return self.kinds[0][0]

    @property
    def stem_level(self) -> int:
        """Level of the stem's output."""
        return 2 if self.stem_pool_stride == 2 else 1


FAMILIES = {
    "spinenet": ScalePermutedFamily(
        (0, 32, 64, 128, 256, 256, 256, 256),
        (("bottleneck", "bottleneck"), ("residual", "basic")),
        *(64, False, 7, 2, "relu"),
    ),
    "spinenet_mobile": ScalePermutedFamily(
        (8, 16, 24, 40, 80, 112, 112, 112), (("mbconv", "inverted"),), *(8, True, 3, 1, "swish")
    ),
}
# Channels inside an MBConv over its input's, and units of its squeeze-excitation over them.
_EXPANSION, _SQUEEZE = 6, 0.2
# Output channels of a bottleneck over its width.
_BOTTLENECK = 4


@dataclasses.dataclass(frozen=True)
class ResampleShape:
    """How a parent is brought to the size and channels of a block.

    Attributes:
      parent: index of the parent.
      convolutions: convolutions in order, numbered; the last one is 1x1, gives the block's input
        channels and has no activation. A max-pooling or a nearest resize comes before it.
      levels: level of each convolution's output.
    """

    parent: int
    convolutions: tuple[ConvShape, ...]
    levels: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Node:
    """A block with everything that modules, costs and exports need.

    Attributes:
      name: name of its parameters, `block0` and so on.
      level: its level.
      resamples: its parents; none in the stem, where a block follows the one before.
      extras: blocks that are added to its input as they are: blocks of its level and channels that
        feed no other block (the zero-out-degree rule).
      units: shapes of its repeats.
      is_output: whether it is an output.
      place: its index among the permuted blocks; None in the stem.
      dilation: dilation of the 3x3 convolutions of its units.
    """

    name: str
    level: int
    resamples: tuple[ResampleShape, ...]
    extras: tuple[int, ...]
    units: tuple[BlockShape, ...]
    is_output: bool
    place: int | None
    dilation: int = 1

    @property
    def out_channels(self) -> int:
        """Channels of its output."""
        return self.units[-1].out_channels


@functools.lru_cache(maxsize=64)
def list_nodes(arch) -> tuple[Node, ...]:
    """List all blocks of a `ScalePermuted` in order."""
    nodes, unused = [], {}
    level, channels = arch.traits.stem_level, arch.stem_shape.channels
    for index, block in enumerate(arch.stem):
        units = _units(
            arch, arch.traits.stem_kind, block.level, channels, 2 ** (block.level - level)
        )
        nodes.append(Node(f"block{index}", block.level, (), (), units, False, None))
        level, channels = block.level, nodes[-1].out_channels
        if block.is_parent:
            unused[index] = nodes[-1]
    for place, block in enumerate(arch.blocks):
        index, channels = len(nodes), _in_channels(arch, block)
        resamples = tuple(
            resample_shape(arch, parent, nodes[parent], block) for parent in block.parents
        )
        for parent in block.parents:
            unused.pop(parent, None)
        extras = ()
        if block.is_output:  # by level and channels, never by size, which small images make equal
            same = ((i, (n.level, n.out_channels)) for i, n in unused.items())
            extras = tuple(i for i, key in same if key == (block.level, channels))
            for extra in extras:
                del unused[extra]
        units = _units(arch, block.kind, block.level, channels, 1)
        rest = (units, block.is_output, place, arch.block_dilations[place])
        node = Node(f"block{index}", block.level, resamples, extras, *rest)
        nodes.append(node)
        unused[index] = node
    return tuple(nodes)


def _in_channels(arch, block):
    return arch.width(block.level) * (_BOTTLENECK if block.kind == "bottleneck" else 1)


def _units(arch, kind, level, in_channels, stride):
    """Return the shapes of a block's repeats; the first has the stride."""
    shape_kind, width = dict(arch.traits.kinds)[kind], arch.width(level)
    out = width * (_BOTTLENECK if kind == "bottleneck" else 1)
    units = []
    for repeat in range(arch.repeats):
        before, step = (in_channels, stride) if repeat == 0 else (out, 1)
        inner, groups, squeeze = width, 1, 0
        if kind == "mbconv":
            inner = groups = _EXPANSION * before
            squeeze = max(int(_SQUEEZE * before), 1)
        units.append(BlockShape(shape_kind, before, inner, out, step, groups, squeeze))
    return tuple(units)


def resample_shape(arch, parent: int, node: Node, block) -> ResampleShape:
    """Return the shape of the way from a parent to a permuted block.

    Args:
      arch: the `ScalePermuted`.
      parent: index of the parent.
      node: the parent.
      block: the `PermutedBlock`.
    """
    convolutions, levels, channels = [], [], node.out_channels

    def add(level, out_channels, size, stride=1, groups=1):
        name = str(len(convolutions) + 1)
        convolutions.append(ConvShape(name, channels, out_channels, size, stride, groups))
        levels.append(level)

    if arch.family == "spinenet_mobile":
        for level in range(node.level + 1, block.level + 1):
            add(level, channels, 3, 2, channels)
    else:
        inner = max(int(arch.alpha * node.units[-1].inner_channels), 1)
        add(node.level, inner, 1)
        channels = inner
        if node.level < block.level:
            add(node.level + 1, inner, 3, 2)
    add(block.level, _in_channels(arch, block), 1)
    return ResampleShape(parent, tuple(convolutions), tuple(levels))
