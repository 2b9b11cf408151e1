"""The schedule of visits: every path comes out whole, and no shared block is run twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnas_jax.models.supernet.prefix_tree import schedule

STAGE = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


def _run(paths, places, num_slots):
    """Make the visits as the evaluator does, a feature being the blocks that made it.

    Returns:
      Number of blocks that were run.
    """
    order, visits = plan = schedule(paths, places, num_slots)
    features, slots = [None] * len(places), [[None] * num_slots for _ in places]
    offsets, num_blocks = np.cumsum([0, *places]), 0
    for visit, index in enumerate(order):
        below = ()
        for stage, blocks in enumerate(paths[index]):
            start, load = visits.start[visit, stage], visits.load[visit, stage]
            x = slots[stage][load] if load >= 0 else features[stage]
            x = below if start == 0 else x
            for place in range(start, len(blocks)):
                x, num_blocks = (*x, (stage, blocks[place])), num_blocks + 1
                slot = visits.save[visit, offsets[stage] + place]
                if slot >= 0:
                    slots[stage][slot] = x
            features[stage] = below = x
        assert below == tuple((s, b) for s, blocks in enumerate(paths[index]) for b in blocks)
    assert num_blocks == plan.num_blocks(paths)
    assert sorted(order) == list(range(len(paths)))
    return num_blocks


def _num_tree_blocks(paths):
    """Count the blocks of the prefix tree."""
    nodes = set()
    for path in paths:
        prefix = ()
        for stage, blocks in enumerate(path):
            for block in blocks:
                prefix = (*prefix, (stage, block))
                nodes.add(prefix)
            prefix = (*prefix, (stage, "end"))
    return len(nodes)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(STAGE, STAGE), min_size=1, max_size=12))
def test_any_list_of_paths_runs_each_shared_block_once(paths):
    assert _run(paths, (5, 5), num_slots=12) == _num_tree_blocks(paths)
    for num_slots in (0, 1):
        assert _run(paths, (5, 5), num_slots) >= _num_tree_blocks(paths)


@pytest.mark.parametrize("block", [0, 3, 7])
def test_greedy_candidates_need_as_many_slots_as_the_beam_has_codes(block):
    rng = np.random.default_rng(block)
    for _ in range(20):
        beam = [tuple(rng.integers(3, size=block)) for _ in range(3)]
        rest = tuple(rng.integers(3, size=7 - block))
        codes = [(*code, operation, *rest) for code in beam for operation in range(3)]
        paths = [(code[:4], code[4:]) for code in codes]
        assert _run(paths, (4, 4), num_slots=3) == _num_tree_blocks(paths)
