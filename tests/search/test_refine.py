"""The decision from arrays: AP of each network and seed, and AP on resampled images."""

import numpy as np
import pytest
from scipy import stats

from crnas_jax.errors import UserError
from crnas_jax.search.refine import RefineOptions, decide, difference

NAMES = ("baseline", "searched", "stage_only")
RNG = np.random.default_rng(0)
# Three networks with three seeds, and 50 resamplings of the images.
AP = np.array([[0.30, 0.32, 0.31], [0.35, 0.33, 0.37], [0.33, 0.34, 0.32]])
DRAWS = AP.mean(1, keepdims=True) + 0.02 * RNG.normal(size=(3, 50))


def test_the_variance_is_that_of_images_plus_that_of_seeds():
    result = difference(AP, DRAWS, 1)
    value = 0.35 - 0.31
    seeds = np.mean([0.01**2, 0.02**2, 0.01**2])  # sample variances of the three rows
    error = np.sqrt(np.var(DRAWS[1] - DRAWS[0], ddof=1) + 2 / 3 * seeds)
    assert result.value == pytest.approx(value)
    assert result.probability == pytest.approx(stats.t.cdf(value / error, 3 * 2))
    half = 2.446912 * error  # 97.5 % of Student's t with 6 degrees of freedom
    assert result.interval == pytest.approx((value - half, value + half), abs=1e-6)


def test_effects_of_an_image_on_both_networks_cancel():
    common = RNG.normal(size=50)
    steady = difference(AP, AP.mean(1, keepdims=True) + common, 1)
    error = np.sqrt(2 / 3 * np.mean([0.01**2, 0.02**2, 0.01**2]))
    assert steady.probability == pytest.approx(stats.t.cdf(0.04 / error, 6))


def test_a_single_seed_gives_the_interval_over_images_and_no_probability():
    result = difference(AP[:, :1], DRAWS, 1)
    low, high = np.quantile(DRAWS[1] - DRAWS[0], [0.025, 0.975])
    assert result.interval == pytest.approx((min(low, 0.05), max(high, 0.05)))
    assert result.probability is None


def test_the_best_network_that_passes_is_returned():
    decision = decide(NAMES, AP, DRAWS, 0.6)
    assert decision.network == decision.challenger == "searched"
    assert decision.difference == difference(AP, DRAWS, 1)
    assert f"probability of {decision.difference.probability:.2f}" in decision.reason
    # The best one is uncertain, another passes.
    draws = DRAWS.copy()
    draws[1] = draws[0] + 3 * RNG.normal(size=50)
    draws[2] = draws[0] + 0.02
    assert decide(NAMES, AP, draws, 0.8).network == "stage_only"


def test_the_baseline_comes_back_where_none_passes():
    decision = decide(NAMES, AP, DRAWS, 0.99)
    assert decision.network == "baseline"
    assert decision.challenger == "searched"
    assert "the probability that is asked for, 0.99; the found network" in decision.reason
    assert "the found network comes nearest with 0." in decision.reason
    worse = decide(NAMES[:2], AP[[1, 0]], DRAWS[[1, 0]], 0.51)
    assert (worse.network, worse.challenger) == ("baseline", "searched")
    assert worse.difference.value < 0
    assert worse.difference.probability < 0.5
    equal = decide(NAMES[:2], AP[[0, 0]], DRAWS[[0, 0]], 0.51)
    assert (equal.network, equal.difference.probability) == ("baseline", 0.5)


def test_one_seed_decides_nothing():
    decision = decide(NAMES, AP[:, :1], DRAWS, 0.5)
    assert decision.network == "baseline"
    assert decision.reason.startswith("not decided: with one seed")


def test_the_baseline_alone_is_returned():
    decision = decide(("baseline",), AP[:1], DRAWS[:1], 0.8)
    assert decision.network == "baseline"
    assert decision.challenger is decision.difference is None
    assert decision.reason == "the searches found the baseline itself"


@pytest.mark.parametrize("value", [0.0, 0.4])
def test_networks_without_any_spread_are_compared(value):
    ap = np.array([[0.3, 0.3], [0.3 + value, 0.3 + value]])
    probability = difference(ap, ap, 1).probability
    assert probability == (1.0 if value else 0.5)


def test_few_searches_return_a_worse_network():
    """The simulation of `benchmarks/decision.py` in small: 300 searches where nothing is better."""
    rng, returned = np.random.default_rng(1), 0
    for _ in range(300):
        on_val = 0.5 * rng.normal(size=(2, 1))
        ap = on_val + rng.normal(size=(2, 2))
        draws = ap.mean(1, keepdims=True) + 0.5 * rng.normal(size=(2, 100))
        returned += decide(NAMES[:2], ap, draws, 0.8).network != "baseline"
    # One in five at most, and three standard deviations of a count of 300.
    assert returned <= 60 + 3 * (300 * 0.2 * 0.8) ** 0.5


def test_without_finalists_there_is_one_training_of_each():
    assert RefineOptions(finalists=0, seeds=4).num_seeds == 1
    assert RefineOptions(seeds=4).num_seeds == 4


@pytest.mark.parametrize("field", ["finalists", "operation_finalists", "short", "confidence"])
def test_options_are_checked(field):
    with pytest.raises(UserError, match=field):
        RefineOptions(**{field: -1})
    with pytest.raises(UserError, match="confidence"):
        RefineOptions(confidence=1.0)
