"""Random search on made-up scores: which codes it scores, and how many."""

import pytest
from helpers import SAMPLED_SPACES, Noisy, check_sampled_codes

from crnas_jax.search.strategies.random_search import draw_new, random_search
from crnas_jax.spaces.constrained import Constrained
from crnas_jax.spaces.stages import StageSpace


@pytest.mark.parametrize("spaces", SAMPLED_SPACES)
def test_it_scores_so_many_different_codes_of_each_space(spaces):
    check_sampled_codes(random_search, spaces)


def test_the_few_allowed_of_many_allocations_are_drawn_at_once():
    space = StageSpace().within(33)
    allowed, judged = list(space.enumerate())[::100], []
    limited = Constrained(space, lambda code: judged.append(code) or code in allowed, "a few")
    (ranked,) = random_search([limited], Noisy(), evaluations=10)
    assert sorted(code for code, _ in ranked) == allowed
    assert len(judged) == space.count()


def test_new_codes_come_in_the_order_drawn():
    draws = iter([(1,), (2,), (1,), (3,), (4,)])
    assert draw_new(lambda: next(draws), {(2,)}, 3) == [(1,), (3,), (4,)]
    assert draw_new(lambda: (1,), {(1,)}, 3) == []
