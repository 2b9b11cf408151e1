"""Exhaustive search against brute force on tabulated scores, ties included."""

import itertools

import pytest
from helpers import Table

from crnas_jax.errors import UserError
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.spaces.constrained import Constrained
from crnas_jax.spaces.stages import StageSpace


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_exhaustive_search_of_several_budgets_scores_their_union_once(levels):
    space = StageSpace()
    for seed in range(5):
        table, best = Table(seed, levels), {}
        for depths in itertools.product(*space.grids):
            budget = sum(depths)
            value = table.value(depths) if budget in (8, 16) else None
            # The smallest of equal codes comes first.
            if value is not None and (budget not in best or value > best[budget][1]):
                best[budget] = (depths, value)
        ranked = exhaustive([space.within(8), space.within(16)], table)
        assert [ranking[0] for ranking in ranked] == [best[8], best[16]]
        assert len(table.calls) == 1
        assert len(table.calls[0]) == len(set(table.calls[0])) == 9 + 153


def test_a_space_without_codes_is_refused():
    nothing = Constrained(StageSpace().within(16), lambda code: False, "nothing")
    with pytest.raises(UserError, match="no allocation of 16 blocks is allowed"):
        exhaustive([nothing], Table(0, 2))
