"""Connections of a scale-permuted network: what may be read, and which blocks live."""

import itertools

import numpy as np
import pytest

from crnas_jax.arch import connections, zoo
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.errors import UserError

_ROWS = ((4, "bottleneck"), (2, "residual"), (4, "residual"), (3, "bottleneck"), (5, "bottleneck"))
ARCH = ScalePermuted(
    "spinenet",
    (StemBlock(2), StemBlock(2)),
    (
        *(PermutedBlock(*row, (place, place + 1)) for place, row in enumerate(_ROWS)),
        *(PermutedBlock(level, "bottleneck", (5, 6), True) for level in (3, 4, 5)),
    ),
)


def test_a_network_without_changes_is_itself():
    for name in zoo.SCALE_PERMUTED:
        arch = zoo.get(name)
        parents = [block.parents for block in arch.blocks]
        assert connections.connected(arch, parents) == (arch, tuple(range(len(arch.nodes()))))


def test_the_papers_own_connections_are_candidates():
    arch = zoo.get("spinenet49")
    read = connections.candidates(arch, 5)
    assert [len(row) for row in read] == [2, 3, 4, *[5] * 7, *range(12, 17)]
    assert all(set(block.parents) <= set(row) for block, row in zip(arch.blocks, read, strict=True))
    r23 = connections.candidates(zoo.get("r23_sp30"), 5)
    assert r23[0] == (5, 6)  # the only stem blocks that may be read


def _largest_accepted(parents):
    """Find the most blocks that make a network with these connections, by trying all subsets."""
    num_stem, places = len(ARCH.stem), range(len(ARCH.blocks))
    inner = [place for place in places if not ARCH.blocks[place].is_output]
    for size in reversed(range(len(inner) + 1)):
        for dropped in itertools.combinations(inner, len(inner) - size):
            kept = [*range(num_stem), *(num_stem + p for p in places if p not in dropped)]
            if any(not set(parents[index - num_stem]) <= set(kept) for index in kept[num_stem:]):
                continue
            blocks = tuple(
                PermutedBlock(
                    ARCH.blocks[index - num_stem].level,
                    ARCH.blocks[index - num_stem].kind,
                    tuple(kept.index(parent) for parent in parents[index - num_stem]),
                    ARCH.blocks[index - num_stem].is_output,
                )
                for index in kept[num_stem:]
            )
            try:
                return ScalePermuted("spinenet", ARCH.stem, blocks), tuple(kept)
            except UserError:
                continue
    return None


@pytest.mark.parametrize("seed", range(30))
def test_the_living_blocks_are_the_most_that_make_a_network(seed):
    rng = np.random.default_rng(seed)
    parents = [
        tuple(sorted(rng.choice(read, 2, replace=False).tolist()))
        for read in connections.candidates(ARCH, 5)
    ]
    assert connections.connected(ARCH, parents) == _largest_accepted(parents)
