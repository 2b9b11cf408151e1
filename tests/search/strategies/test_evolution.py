"""Evolution on made-up scores: which codes it scores, and that it climbs."""

import numpy as np
import pytest
from helpers import Noisy

from crnas_jax.search.strategies.evolution import evolution
from crnas_jax.search.strategies.random_search import random_search
from crnas_jax.spaces.constrained import Constrained
from crnas_jax.spaces.operations import OperationSpace
from crnas_jax.spaces.stages import StageSpace


@pytest.mark.parametrize(
    "spaces", [[StageSpace().within(8), StageSpace().within(16)], [OperationSpace((2, 2))]]
)
def test_it_scores_so_many_different_codes_of_each_space(spaces):
    results = [evolution(spaces, Noisy(), seed, evaluations=40) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0][-1] != results[2][-1]
    for space, ranked in zip(spaces, results[0], strict=True):
        codes = [code for code, _ in ranked]
        assert len(set(codes)) == len(codes) == min(40, space.count())
        assert set(codes) <= set(space.enumerate())
        scores = [score for _, score in ranked]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("num_allowed", [1, 3])
def test_it_ends_where_hardly_anything_is_allowed(num_allowed):
    space = StageSpace().within(8)
    allowed = list(space.enumerate())[:: 8 // num_allowed][:num_allowed]
    limited = Constrained(space, set(allowed).__contains__, "one of a few")
    (ranked,) = evolution([limited], Noisy(), evaluations=10, population=2)
    assert sorted(code for code, _ in ranked) == allowed


def test_it_climbs_above_random_search():
    spaces = [StageSpace().within(33)]
    bred = evolution(spaces, Noisy(noise=0), evaluations=80)[0][0][1]
    drawn = [
        random_search(spaces, Noisy(noise=0), seed, evaluations=80)[0][0][1] for seed in range(5)
    ]
    assert bred > np.mean(drawn)
