"""NAS-FPN (arXiv 1904.07392), the found pyramid in the form of the authors' TPU code."""

import dataclasses

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from crnas_jax.models.layers import BNMode, conv_bn
from crnas_jax.models.necks.fpn import nearest

LEVELS = 5


@dataclasses.dataclass(frozen=True)
class Cell:
    """One merging cell: the sum or the global attention of two earlier nodes.

    Attributes:
      attention: global pooling attention (GP); otherwise the sum.
      inputs: nodes, of which 0..4 are the pyramid's inputs, finest first.
      level: of the output, 0 for the finest.
      extra: an input that nothing else uses and that is added.
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
      channels: of every cell.
      stacks: pyramids on top of each other.
      lowest_level: of the outputs.
    """

    channels: int = 384
    stacks: int = 7
    lowest_level: int = 3

    @nn.compact
    def __call__(
        self,
        features: tuple[Float[Array, "batch _ _ _"], ...],
        mode: BNMode,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, "batch _ _ channels"], ...]:
        levels = []
        for level, x in enumerate(features[self.lowest_level - 2 :], self.lowest_level):
            levels.append(
                conv_bn(x, self.channels, 1, mode=mode, weight=weight, prefix=f"lateral{level}_")
            )
        while len(levels) < LEVELS:
            levels.append(_max_pool(levels[-1], 2))
        for stack in range(self.stacks):
            nodes, outputs = list(enumerate(levels)), {}
            for index, cell in enumerate(CELLS):
                node = _merge(cell, nodes)
                name = f"stack{stack + 1}_cell{index + 1}_"
                node = conv_bn(
                    nn.relu(node), self.channels, 3, mode=mode, weight=weight, prefix=name
                )
                nodes.append((cell.level, node))
                outputs[cell.level] = node
            levels = [outputs[level] for level in range(LEVELS)]
        return tuple(levels)


def _merge(cell, nodes):
    """The two inputs at the cell's resolution, merged; the coarser one gates in an attention."""
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
    """Maximum down by so many levels, or nearest up to `size`."""
    return _max_pool(x, 2**levels) if levels > 0 else nearest(x, size)


def _max_pool(x, factor):
    """Over factor x factor cells; a ragged edge is a cell of its own, as in strided convolution."""
    height, width = (-side % factor for side in x.shape[1:3])
    return nn.max_pool(x, (factor, factor), (factor, factor), ((0, height), (0, width)))
