"""The schedule of visits: every path comes out whole, and nothing shared is run twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnas_jax.models.supernet.prefix_tree import schedule

STAGE = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


def _run(paths, places, slots):
    """Visits as the evaluator makes them, a feature being the blocks that made it."""
    plan = schedule(paths, places, slots)
    features, kept = [None] * len(places), [[None] * slots for _ in places]
    offsets, ran = np.cumsum([0, *places]), 0
    for visit, index in enumerate(plan.order):
        below = ()
        for stage, blocks in enumerate(paths[index]):
            start, load = plan.start[visit, stage], plan.load[visit, stage]
            x = kept[stage][load] if load >= 0 else features[stage]
            x = below if start == 0 else x
            for place in range(start, len(blocks)):
                x, ran = (*x, (stage, blocks[place])), ran + 1
                slot = plan.save[visit, offsets[stage] + place]
                if slot >= 0:
                    kept[stage][slot] = x
            features[stage] = below = x
        assert below == tuple((s, b) for s, blocks in enumerate(paths[index]) for b in blocks)
    assert ran == plan.blocks(paths)
    assert sorted(plan.order) == list(range(len(paths)))
    return ran


def _distinct(paths):
    """Blocks of the prefix tree."""
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
def test_any_list_of_paths(paths):
    assert _run(paths, (5, 5), slots=12) == _distinct(paths)
    for slots in (0, 1):
        assert _run(paths, (5, 5), slots) >= _distinct(paths)


@pytest.mark.parametrize("block", [0, 3, 7])
def test_greedy_candidates_need_as_many_slots_as_codes_are_kept(block):
    rng = np.random.default_rng(block)
    for _ in range(20):
        kept = [tuple(rng.integers(3, size=block)) for _ in range(3)]
        rest = tuple(rng.integers(3, size=7 - block))
        codes = [(*code, operation, *rest) for code in kept for operation in range(3)]
        paths = [(code[:4], code[4:]) for code in codes]
        assert _run(paths, (4, 4), slots=3) == _distinct(paths)
