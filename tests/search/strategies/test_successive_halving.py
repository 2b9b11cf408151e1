"""Random search, evolution and halving on made-up scores: what they may score, and how much."""

import itertools

import numpy as np
import pytest
from helpers import BATCHES, Noisy

from crnas_jax.errors import UserError
from crnas_jax.search.strategies.evolution import evolution, random_search
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.successive_halving import SCHEDULE, halving, rounds
from crnas_jax.spaces.stages import Constrained, OperationSpace, StageSpace


@pytest.mark.parametrize("seed", range(3))
def test_halving_finds_the_best_at_a_third_of_the_passes(seed):
    whole, race = Noisy(seed), Noisy(seed)
    space = StageSpace()
    best, value = exhaustive(space, (16,), whole)[16][0]
    found, score = halving(space, (16,), race)[16][0]
    assert score == whole.score([found])[0]
    assert value - score <= 0.005
    assert sum(race.passes.values()) <= 0.4 * sum(whole.passes.values())
    assert race.cleared
    assert best in race.passes


def test_halving_of_candidates_that_hardly_differ_is_bounded_too():
    race = Noisy(noise=5.0)
    race.worth = lambda code: 0.0
    halving(StageSpace(), (8, 16), race)
    most = sum(new * share for new, share in _increments())
    assert sum(race.passes.values()) <= (most * (9 + 153) + 4 * BATCHES) * 1.02


def _increments():
    before = 0
    for seen, share in rounds(SCHEDULE, BATCHES):
        yield seen - before, share
        before = seen


def test_what_is_surely_worse_is_out_after_the_first_round():
    race = Noisy(noise=0.01)
    halving(StageSpace(), (16,), race)
    assert sum(batches > 2 for batches in race.passes.values()) < 20


def test_rounds_end_with_all_mini_batches():
    assert rounds(SCHEDULE, 16) == [(2, 1.0), (4, 0.5), (8, 0.25), (16, 0.125)]
    for batches in range(1, 20):
        for fewest in range(1, batches + 1):
            found = rounds(SCHEDULE, batches, fewest)
            seen = [number for number, _ in found]
            assert seen == sorted(set(seen))
            assert seen[-1] == batches
            assert seen[0] >= fewest
            assert found[0][1] == 1


@pytest.mark.parametrize("batches", [1, 2, 3, 5, 9])
def test_every_candidate_is_scored_on_some_images(batches):
    race, space = Noisy(batches=batches), StageSpace()
    halving(space, (16,), race)
    assert set(race.passes) == set(space.enumerate(16))


def test_the_first_round_has_objects_and_images_enough_to_judge_by():
    race = Noisy(empty=5)
    halving(StageSpace(), (16,), race)
    assert min(race.passes.values()) == 6
    race = Noisy(batches=32)
    race.images = lambda batches: 2 * batches
    halving(StageSpace(), (16,), race)
    assert min(race.passes.values()) == 8


@pytest.mark.parametrize("strategy", [random_search, evolution])
@pytest.mark.parametrize(
    ("space", "budgets"), [(StageSpace(), (8, 16)), (OperationSpace((2, 2)), (None,))]
)
def test_baselines_score_so_many_different_codes_of_the_space(strategy, space, budgets):
    results = [strategy(space, budgets, Noisy(), seed, evaluations=40) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0] != results[2] or len(results[0][budgets[0]]) == space.count(budgets[0])
    for budget, ranked in results[0].items():
        codes = [code for code, _ in ranked]
        assert len(set(codes)) == len(codes) == min(40, space.count(budget))
        assert set(codes) <= set(space.enumerate(budget))
        scores = [score for _, score in ranked]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("number", [1, 3])
def test_evolution_ends_where_hardly_anything_is_allowed(number):
    few = list(StageSpace().enumerate(8))[:: 8 // number][:number]
    limited = Constrained(StageSpace(), set(few).__contains__, "one of a few")
    ranked = evolution(limited, (8,), Noisy(), evaluations=10, population=2)[8]
    assert sorted(code for code, _ in ranked) == few


def test_few_of_many_allocations_are_found_at_once():
    space = StageSpace()
    few = list(space.enumerate(33))[::100]
    asked = []
    limited = Constrained(space, lambda code: asked.append(code) or code in few, "one of a few")
    ranked = random_search(limited, (33,), Noisy(), evaluations=10)[33]
    assert sorted(code for code, _ in ranked) == few
    assert len(asked) == space.count(33)
    nothing = Constrained(OperationSpace((8, 8)), lambda code: False, "nothing")
    with pytest.raises(UserError, match="next to nothing has nothing"):
        nothing.sample(np.random.default_rng(0))


def test_evolution_climbs():
    space, budgets = StageSpace(), (33,)
    bred = evolution(space, budgets, Noisy(noise=0), evaluations=80)[33][0][1]
    drawn = np.mean(
        [
            random_search(space, budgets, Noisy(noise=0), s, evaluations=80)[33][0][1]
            for s in range(5)
        ]
    )
    assert bred > drawn


@pytest.mark.parametrize("space", [StageSpace(), OperationSpace((2, 2))])
def test_children_are_codes_of_the_budget(space):
    rng, budget = np.random.default_rng(0), 16 if isinstance(space, StageSpace) else None
    codes = set(space.enumerate(budget))
    few = set(itertools.islice(sorted(codes), 0, None, 2))
    limited = Constrained(space, few.__contains__, "an even place")
    for one, allowed in ((space, codes), (limited, few)):
        first, second = (one.sample(rng, budget) for _ in range(2))
        for _ in range(50):
            child = one.mutate(first, rng, budget)
            assert child in allowed
            assert child != first
            first, second = one.cross(child, second, rng, budget), child
            assert first in allowed
