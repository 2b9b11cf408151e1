"""Racing on made-up scores: what it drops, what it must not drop, and how many images it runs."""

import numpy as np
import pytest
from helpers import BATCHES, IMAGES, Noisy
from scipy import stats

from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.racing import cutoff, looks, racing
from crnas_jax.spaces.stages import StageSpace

SPACE = StageSpace().within(16)


class Listed:
    """Space of the codes (0,), (1,), ... up to a number, from a first one on."""

    enumerable, noun = True, "number"

    def __init__(self, count, first=0):
        self.codes = [(place,) for place in range(first, first + count)]

    def count(self):
        return len(self.codes)

    def enumerate(self):
        return self.codes

    def sample(self, rng):
        return self.codes[rng.integers(len(self.codes))]


class Images(Noisy):
    """`PartialScores` of given values of each image, [codes, images]; code (i,) has row i."""

    def __init__(self, image_values, resampled=None):
        image_values = np.asarray(image_values, float)
        super().__init__(num_batches=image_values.shape[1] // IMAGES)
        self.image_values, self.resampled = image_values, resampled

    def values(self, code, num_batches):
        return self.image_values[code[0], : IMAGES * num_batches]

    def draws(self, codes, num_batches):
        if self.resampled is None:
            return super().draws(codes, num_batches)
        weights = self.resampled[num_batches]
        rows = [code[0] for code in codes]
        return self.image_values[rows, : weights.shape[1]] @ weights.T / weights.shape[1]


def apart(*levels):
    """Return noise with these means over any two mini-batches that start at an even one."""
    noise = np.random.default_rng(0).normal(0, 0.1, (len(levels), 2 * IMAGES))
    noise -= noise.mean(1, keepdims=True)
    return np.tile(noise, BATCHES // 2) + np.array(levels)[:, None]


def test_as_many_have_to_be_better_as_are_wanted():
    """Five levels surely apart: the best two, or three, stay to the end."""
    for num_best in (1, 2, 3):
        scores = Images(apart(0.9, 0.7, 0.5, 0.3, 0.1))
        (ranked,) = racing([Listed(5)], scores, num_best=num_best)
        assert [code for code, _ in ranked] == [(place,) for place in range(num_best)]


@pytest.mark.parametrize("seed", range(3))
def test_the_race_finds_the_best_with_fewer_passes(seed):
    full, race = Noisy(seed), Noisy(seed)
    best = exhaustive([SPACE], full)[0][0]
    assert racing([SPACE], race)[0][0] == best
    assert sum(race.passes.values()) <= 0.6 * sum(full.passes.values())
    assert race.cleared
    assert set(race.passes) == set(SPACE.enumerate())


def test_what_is_surely_worse_sees_the_first_look_alone():
    values = apart(1.0, 0.0, 0.99)
    race = Images(values)
    (ranked,) = racing([Listed(3)], race)
    assert race.passes == {(0,): BATCHES, (1,): 2, (2,): BATCHES}
    assert [code for code, _ in ranked] == [(0,), (2,)]
    assert [score for _, score in ranked] == pytest.approx([1.0, 0.99])


def test_equal_candidates_are_never_dropped():
    for values in (np.ones((25, BATCHES * IMAGES)), np.tile(apart(0.0), (25, 1))):
        race = Images(values)
        (ranked,) = racing([Listed(25)], race, confidence=0.01)
        assert len(ranked) == 25
        assert set(race.passes.values()) == {BATCHES}


def test_codes_to_keep_stay_and_those_of_no_space_are_ignored():
    race = Images(apart(1.0, 0.0, 0.0, 0.0))
    (ranked,) = racing([Listed(4)], race, keep=((2,), (7,)))
    assert [code for code, _ in ranked] == [(0,), (2,)]
    assert race.passes == {(0,): BATCHES, (1,): 2, (2,): BATCHES, (3,): 2}


def test_candidates_race_those_of_their_own_space_alone():
    race = Images(apart(1.0, 0.99, 0.0, -0.01, -1.0, 0.01))
    first, second = racing([Listed(3), Listed(4, first=2)], race)
    assert [code for code, _ in first] == [(0,), (1,)]
    assert [code for code, _ in second] == [(5,), (2,), (3,)]
    # The first space dropped code 2, but the second one needs it.
    assert race.passes == {(4,): 2, **{(code,): BATCHES for code in (0, 1, 2, 3, 5)}}


def test_the_bound_on_errors_is_shared_by_looks_and_candidates():
    """A difference just below and just above c standard errors, at the first of three looks."""
    tail = 0.05 / (3 * 1)
    expected = stats.t.isf(tail, 1 / (1 / 19 + 1 / 199)) * np.sqrt(20 / 19)
    assert cutoff(20, 200, tail) == pytest.approx(expected)
    assert cutoff(20, 200, tail) == pytest.approx(2.372, abs=0.001)
    values = apart(0.0, 0.0)
    draws = Images(values).draws([(0,), (1,)], 2)
    error = (draws[0] - draws[1]).std(ddof=1)
    for ratio in (0.99, 1.01):
        race = Images(values + np.array([[ratio * cutoff(20, 200, tail) * error], [0.0]]))
        racing([Listed(2)], race)
        assert (race.passes[1,] == 2) == (ratio > 1)


def test_one_candidate_and_one_draw_are_no_race():
    assert racing([Listed(1)], Images(apart(0.0)))[0] == [((0,), pytest.approx(0.0))]
    race = Images(apart(1.0, 0.0))
    race.draws = lambda codes, num_batches: np.ones((len(codes), 1))
    assert len(racing([Listed(2)], race)[0]) == 2


def test_looks_end_with_all_mini_batches():
    assert looks(Noisy()) == [2, 4, 8, 16]
    for num_batches in range(1, 40):
        seen = looks(Noisy(num_batches=num_batches))
        assert seen == sorted(set(seen))
        assert seen[-1] == num_batches
        assert seen[0] >= min(2, num_batches)
        assert len(seen) <= 4


@pytest.mark.parametrize("num_batches", [1, 2, 3, 5, 9])
def test_every_candidate_is_scored_on_some_images(num_batches):
    race = Noisy(num_batches=num_batches)
    racing([SPACE], race)
    assert set(race.passes) == set(SPACE.enumerate())


def test_the_first_look_has_objects_and_images_enough_to_judge_by():
    race = Noisy(num_empty=5)
    racing([SPACE], race)
    assert min(race.passes.values()) == 6
    race = Noisy(num_batches=32)
    race.num_images = lambda num_batches: 2 * num_batches
    racing([SPACE], race)
    assert min(race.passes.values()) == 8


def test_a_lower_confidence_drops_more_candidates():
    passes = []
    for confidence in (0.6, 0.95):
        race = Noisy(noise=1.0)
        racing([SPACE], race, confidence)
        passes.append(sum(race.passes.values()))
    assert passes[0] < passes[1]


def test_the_best_is_dropped_no_more_often_than_the_confidence_allows():
    """In a tie, where any candidate may be called the best and errors are most frequent."""
    races, count = 300, 25
    rng = np.random.default_rng(0)
    resampled = {
        seen: rng.multinomial(IMAGES * seen, np.full(IMAGES * seen, 1 / (IMAGES * seen)), 200)
        for seen in (2, 4, 8)
    }
    dropped = 0
    for _ in range(races):
        race = Images(rng.normal(size=(count, BATCHES * IMAGES)), resampled)
        racing([Listed(count)], race)
        dropped += race.passes[0,] < BATCHES
    # The largest count that is within chance (one in a thousand) of the nominal share.
    assert dropped <= stats.binom.ppf(0.999, races, 0.05)
    assert dropped > 0  # the bound is not had by dropping nothing
