"""Successive halving on made-up scores: the code it finds, and how many images it runs."""

import pytest
from helpers import BATCHES, Noisy

from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.successive_halving import (
    SCHEDULE,
    halving,
    max_passes,
    min_batches,
    rounds,
)
from crnas_jax.spaces.stages import StageSpace

SPACE = StageSpace().within(16)


@pytest.mark.parametrize("seed", range(3))
def test_halving_finds_the_best_at_a_third_of_the_passes(seed):
    full, race = Noisy(seed), Noisy(seed)
    best_code, best_value = exhaustive([SPACE], full)[0][0]
    code, score = halving([SPACE], race)[0][0]
    assert score == full.score([code])[0]
    assert best_value - score <= 0.005
    assert sum(race.passes.values()) <= 0.4 * sum(full.passes.values())
    assert race.cleared
    assert best_code in race.passes


def test_halving_of_candidates_that_hardly_differ_is_bounded_too():
    race = Noisy(noise=5.0)
    race.worth = lambda code: 0.0
    spaces = [StageSpace().within(budget) for budget in (8, 16)]
    halving(spaces, race)
    bound = max_passes([9, 153], BATCHES, min_batches(race))
    assert bound < 0.5 * BATCHES * (9 + 153)
    assert sum(race.passes.values()) <= bound


def test_the_bound_is_the_sum_over_the_rounds():
    # Of 16 mini-batches the first 2 with all candidates, and so on; never fewer than 2 candidates.
    assert max_passes([100], 16, 1) == 2 * 100 + 2 * 50 + 4 * 25 + 8 * 13
    assert max_passes([3], 16, 1) == 2 * 3 + 2 * 2 + 4 * 2 + 8 * 2
    assert max_passes([1], 16, 1) == 16
    assert max_passes([100, 3], 16, 1) == max_passes([100], 16, 1) + max_passes([3], 16, 1)


def test_what_is_surely_worse_is_out_after_the_first_round():
    race = Noisy(noise=0.01)
    halving([SPACE], race)
    assert sum(num_batches > 2 for num_batches in race.passes.values()) < 20


def test_rounds_end_with_all_mini_batches():
    assert rounds(SCHEDULE, 16) == [(2, 1.0), (4, 0.5), (8, 0.25), (16, 0.125)]
    for num_batches in range(1, 20):
        for first_at_least in range(1, num_batches + 1):
            schedule = rounds(SCHEDULE, num_batches, first_at_least)
            seen = [batches for batches, _ in schedule]
            assert seen == sorted(set(seen))
            assert seen[-1] == num_batches
            assert seen[0] >= first_at_least
            assert schedule[0][1] == 1


@pytest.mark.parametrize("num_batches", [1, 2, 3, 5, 9])
def test_every_candidate_is_scored_on_some_images(num_batches):
    race = Noisy(num_batches=num_batches)
    halving([SPACE], race)
    assert set(race.passes) == set(SPACE.enumerate())


def test_the_first_round_has_objects_and_images_enough_to_judge_by():
    race = Noisy(num_empty=5)
    halving([SPACE], race)
    assert min(race.passes.values()) == 6
    race = Noisy(num_batches=32)
    race.num_images = lambda num_batches: 2 * num_batches
    halving([SPACE], race)
    assert min(race.passes.values()) == 8


def test_a_lower_confidence_drops_more_candidates():
    passes = []
    for confidence in (0.6, 0.95):
        race = Noisy(noise=1.0)
        halving([SPACE], race, confidence)
        passes.append(sum(race.passes.values()))
    assert passes[0] < passes[1]
