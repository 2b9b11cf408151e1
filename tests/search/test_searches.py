"""Stage and operation search against brute force on tabulated scores, ties included."""

import itertools

import numpy as np
import pytest

from crnas_jax.errors import UserError
from crnas_jax.search.operation_search import complete, operation_search
from crnas_jax.search.stage_search import stage_search
from crnas_jax.search_space import OperationSpace, StageSpace


def _table(seed, levels):
    """Scores of any code; few levels make many ties."""
    cache = {}

    def score(codes):
        for code in codes:
            rng = np.random.default_rng([seed, *code, len(code)])
            cache.setdefault(tuple(code), float(rng.integers(levels)) / levels)
        return [cache[tuple(code)] for code in codes]

    return score


@pytest.mark.parametrize("levels", [2, 5, 10**6])
@pytest.mark.parametrize("budget", [8, 16])
def test_stage_search_is_exhaustive(budget, levels):
    grids = StageSpace().grids
    for seed in range(5):
        score = _table(seed, levels)
        best = None
        for depths in itertools.product(*grids):
            if sum(depths) == budget:
                value = score([depths])[0]
                if best is None or value > best[1]:  # the first of equals is the smallest
                    best = (depths, value)
        assert stage_search(StageSpace(), budget, score) == best


def test_stage_search_refuses_an_impossible_budget():
    with pytest.raises(UserError):
        stage_search(StageSpace(), 5, _table(0, 2))


def _brute_force_greedy(blocks, operations, keep, score):
    kept = np.zeros((1, 0), int)
    for _ in range(blocks):
        codes = np.array([[*code, op] for code in kept for op in range(operations)])
        scores = np.array(score([tuple(int(entry) for entry in code) for code in codes]))
        # np.lexsort: the last key is the first to count.
        order = np.lexsort((*codes.T[::-1], -scores))
        kept, scores = codes[order[:keep]], scores[order[:keep]]
    return tuple(int(entry) for entry in kept[0]), scores[0]


@pytest.mark.parametrize("levels", [2, 4, 10**6])
@pytest.mark.parametrize(
    ("depths", "dilations", "keep"), [((1, 2, 2, 1), (1, 2, 3), 3), ((1, 1, 1, 2), (1, 2), 5)]
)
def test_operation_search_is_algorithm_1(depths, dilations, keep, levels):
    space = OperationSpace(depths, dilations)
    for seed in range(10):
        calls, table = [], _table(seed, levels)

        def score(codes, calls=calls, table=table):
            calls.extend(codes)
            return table(codes)

        found = operation_search(space, keep, score)
        assert len(calls) == space.evaluations(keep)
        assert found == _brute_force_greedy(
            space.blocks, len(dilations), keep, _table(seed, levels)
        )


def test_completions_are_common_to_candidates_and_differ_between_batches():
    space = OperationSpace((2, 2, 2, 2))
    rest = {complete(space, code, 0, batch=3)[2:] for code in ((0, 0), (1, 2), (2, 1))}
    assert len(rest) == 1
    assert len({complete(space, (0, 0), 0, batch) for batch in range(20)}) > 15
    assert complete(space, (0,) * 8, 0, 1) == (0,) * 8
    assert all(0 <= entry < 3 for entry in complete(space, (), 5, 0))
