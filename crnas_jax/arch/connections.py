"""Other connections of a scale-permuted network: same order, levels and kinds, other parents."""

import dataclasses
from collections.abc import Sequence

from crnas_jax.arch import graphs
from crnas_jax.arch.scale_permuted import ScalePermuted

# The two parents of a permuted block, ascending.
Pair = tuple[int, int]


def candidates(arch: ScalePermuted, window: int) -> tuple[tuple[int, ...], ...]:
    """List the blocks that each permuted block may read, ascending.

    They are the stem blocks that may be parents and the permuted blocks before it: of an output all
    of them, else the last `window` (the paper's practical limit is 5).
    """
    readable = [index for index, block in enumerate(arch.stem) if block.is_parent]
    found = []
    for index, block in enumerate(arch.blocks, len(arch.stem)):
        found.append(tuple(readable if block.is_output else readable[-window:]))
        readable.append(index)
    return tuple(found)


def extra_candidates(arch: ScalePermuted) -> tuple[tuple[int, ...], ...]:
    """List the blocks that each permuted block might add by the zero-out-degree rule, ascending.

    They are the blocks before an output with its level and channels; of other blocks none.
    """
    nodes, readable, found = arch.nodes(), [], []
    for index, node in enumerate(nodes):
        if node.place is not None:
            same = [
                i
                for i in readable
                if (nodes[i].level, nodes[i].out_channels) == (node.level, node.out_channels)
            ]
            found.append(tuple(same) if node.is_output else ())
        if node.place is not None or arch.stem[index].is_parent:
            readable.append(index)
    return tuple(found)


def connected(
    arch: ScalePermuted, parents: Sequence[Pair]
) -> tuple[ScalePermuted, tuple[int, ...]]:
    """Return the network with other parents, without its dead blocks.

    Args:
      arch: order, levels and kinds of the blocks.
      parents: two earlier blocks for every permuted block.

    Returns:
      The network, and for each of its blocks the index in `arch`.
    """
    num_stem = len(arch.stem)
    blocks = [
        dataclasses.replace(block, parents=tuple(pair))
        for block, pair in zip(arch.blocks, parents, strict=True)
    ]
    places = graphs.living(num_stem, blocks)
    dilations = tuple(arch.block_dilations[place] for place in places)
    network = dataclasses.replace(arch, blocks=graphs.prune(num_stem, blocks), dilations=dilations)
    return network, (*range(num_stem), *(num_stem + place for place in places))
