"""Evolution on made-up scores: which codes it scores, and that it climbs."""

import numpy as np
import pytest
from helpers import SAMPLED_SPACES, Noisy, check_sampled_codes

from crnas_jax.search.strategies.evolution import evolution
from crnas_jax.search.strategies.random_search import random_search
from crnas_jax.spaces.constrained import Constrained
from crnas_jax.spaces.stages import StageSpace


@pytest.mark.parametrize("spaces", SAMPLED_SPACES)
def test_it_scores_so_many_different_codes_of_each_space(spaces):
    check_sampled_codes(evolution, spaces)


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
