"""Balanced draws: each value once before any twice, a function of seed and step alone."""

import collections

import pytest

from crnas_jax.spaces.draws import balanced


@pytest.mark.parametrize("num_values", [1, 2, 3, 10])
def test_each_value_is_drawn_once_before_any_twice(num_values):
    draws = [balanced(num_values, 5, 1, step) for step in range(6 * num_values)]
    for start in range(0, len(draws), num_values):
        assert sorted(draws[start : start + num_values]) == list(range(num_values))
    assert draws[-1] == balanced(num_values, 5, 1, len(draws) - 1)


def test_orders_differ_between_blocks_places_and_seeds():
    def orders(seed, place):
        draws = [balanced(5, seed, place, step) for step in range(200)]
        return [tuple(draws[start : start + 5]) for start in range(0, 200, 5)]

    assert len(set(orders(0, 0))) > 25
    assert orders(0, 0) != orders(0, 1)
    assert orders(0, 0) != orders(1, 0)


def test_two_places_are_independent():
    """All pairs of depths come up about equally often."""
    pairs = collections.Counter(
        (balanced(3, 0, 0, step), balanced(3, 0, 1, step)) for step in range(1800)
    )
    assert len(pairs) == 9
    # Within a block of three steps a pair comes up at most once, with a chance of a third.
    deviation = (600 * 1 / 3 * 2 / 3) ** 0.5
    assert all(abs(count - 200) < 5 * deviation for count in pairs.values())
