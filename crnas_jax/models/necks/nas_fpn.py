"""NAS-FPN (arXiv 1904.07392): the pyramid that the paper found, as in the authors' TPU code."""

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from crnas_jax.arch.families import ConvShape
from crnas_jax.models.layers import Normalization, conv_bn
from crnas_jax.models.necks.fpn import resize_nearest

LEVELS = 5


@dataclasses.dataclass(frozen=True)
class Cell:
    """One merging cell: the sum or the global attention of two earlier nodes.

    Attributes:
      attention: whether to merge by global pooling attention (GP) instead of the sum.
      inputs: indices of two nodes; 0..4 are the pyramid's inputs, finest first.
      level: level of the output, 0 for the finest.
      extra: index of an input that no other cell uses and that is added.
    """

    attention: bool
    inputs: tuple[int, int]
    level: int
    extra: int | None = None


# Figure 7(c) of the paper: two intermediate cells, then the five outputs.
CELLS = (
    Cell(True, (1, 3), 1),
    Cell(False, (1, 5), 1),
    Cell(False, (0, 6), 0),
    Cell(False, (6, 7), 1),
    Cell(True, (7, 8), 2, extra=2),
    Cell(True, (6, 9), 4, extra=4),
    Cell(True, (9, 10), 3),
)


class NASFPN(nn.Module):
    """Five levels from c2..c5: p3..p7 (`lowest_level` 3, the paper's) or p2..p6 (2).

    Attributes:
      channels: channels of every cell.
      stacks: number of pyramids on top of each other.
      lowest_level: finest level of the outputs.
    """

    channels: int = 384
    stacks: int = 7
    lowest_level: int = 3

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "batch _ _ _"], ...],
        norm: Normalization,
    ) -> tuple[Float[Array, "batch _ _ channels"], ...]:
        levels = []
        for level, x in enumerate(features[self.lowest_level - 2 :], self.lowest_level):
            lateral = ConvShape("", x.shape[-1], self.channels, 1, prefix=f"lateral{level}_")
            levels.append(conv_bn(x, lateral, norm))
        while len(levels) < LEVELS:
            levels.append(_max_pool(levels[-1], 2))
        for stack in range(self.stacks):
            nodes, outputs = list(enumerate(levels)), {}
            for index, cell in enumerate(CELLS):
                prefix = f"stack{stack + 1}_cell{index + 1}_"
                shape = ConvShape("", self.channels, self.channels, 3, prefix=prefix)
                node = conv_bn(nn.relu(_merge(cell, nodes)), shape, norm)
                nodes.append((cell.level, node))
                outputs[cell.level] = node
            levels = [outputs[level] for level in range(LEVELS)]
        return tuple(levels)


def _merge(cell, nodes):
    """Merge two inputs at the cell's resolution; in an attention the coarser gates the finer."""
    size = nodes[cell.level][1].shape[1:3]
    inputs = sorted((nodes[index] for index in cell.inputs), key=lambda node: node[0])
    finer, coarser = (_resize(x, cell.level - level, size) for level, x in inputs)
    if cell.attention:
        gate = jax.nn.sigmoid(coarser.max((1, 2), keepdims=True))
        merged = coarser + finer * gate
    else:
        merged = finer + coarser
    return merged if cell.extra is None else merged + nodes[cell.extra][1]


def _resize(x, levels, size):
    """Resize down by `levels` levels with the maximum, or up to `size` with the nearest cell."""
    return _max_pool(x, 2**levels) if levels > 0 else resize_nearest(x, size)


def _max_pool(x, factor):
    """Pool factor x factor cells; a ragged edge is a cell too, as in strided convolution."""
    height, width = (-side % factor for side in x.shape[1:3])
    return nn.max_pool(x, (factor, factor), (factor, factor), ((0, height), (0, width)))
