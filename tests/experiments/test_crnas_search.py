"""Stage and operation search against brute force on tabulated scores, ties included."""

import itertools

import numpy as np
import pytest

from crnas_jax.errors import UserError
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.greedy import complete, greedy
from crnas_jax.spaces.stages import Constrained, OperationSpace, StageSpace


class Table:
    """A `Search` over made-up scores of any code; few levels make many ties."""

    def __init__(self, seed, levels):
        self.seed, self.levels, self.calls = seed, levels, []

    def score(self, codes):
        self.calls.extend(codes)
        return [self.of(code) for code in codes]

    def of(self, code):
        rng = np.random.default_rng([self.seed, *code, len(code)])
        return float(rng.integers(self.levels)) / self.levels


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_exhaustive_search_of_several_budgets(levels):
    grids = StageSpace().grids
    for seed in range(5):
        table, best = Table(seed, levels), {}
        for depths in itertools.product(*grids):
            budget = sum(depths)
            value = table.of(depths) if budget in (8, 16) else None
            # The first of equals is the smallest.
            if value is not None and (budget not in best or value > best[budget][1]):
                best[budget] = (depths, value)
        found = exhaustive(StageSpace(), (8, 16), table)
        assert {budget: ranked[0] for budget, ranked in found.items()} == best
        assert len(table.calls) == len(set(table.calls)) == 9 + 153


def test_an_impossible_budget_is_refused():
    with pytest.raises(UserError, match="costs 5"):
        exhaustive(StageSpace(), (5,), Table(0, 2))


def _brute_force_greedy(blocks, operations, keep, table):
    kept = np.zeros((1, 0), int)
    for _ in range(blocks):
        codes = np.array([[*code, op] for code in kept for op in range(operations)])
        scores = np.array([table.of(tuple(map(int, code))) for code in codes])
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
        table = Table(seed, levels)
        found = greedy(space, (None,), table, keep=keep)[None]
        assert len(table.calls) == space.evaluations(keep)
        assert found[0] == _brute_force_greedy(space.blocks, len(dilations), keep, table)
        assert len(found) == keep


def test_a_limit_on_codes_holds_in_greedy_search():
    space = OperationSpace((2, 2), (1, 2, 3))
    limited = Constrained(space, lambda code: sum(code) <= 3, "a sum of at most 3")
    (best, _), *_ = greedy(limited, (None,), Table(0, 10**6))[None]
    assert sum(best) <= 3
    with pytest.raises(UserError, match="no code is allowed"):
        greedy(Constrained(space, lambda code: False, "nothing"), (None,), Table(0, 5))


def test_completions_are_common_to_candidates_and_differ_between_batches():
    space = OperationSpace((2, 2, 2, 2))
    rest = {complete(space, code, 0, batch=3)[2:] for code in ((0, 0), (1, 2), (2, 1))}
    assert len(rest) == 1
    assert len({complete(space, (0, 0), 0, batch) for batch in range(20)}) > 15
    assert complete(space, (0,) * 8, 0, 1) == (0,) * 8
    assert all(0 <= entry < 3 for entry in complete(space, (), 5, 0))
