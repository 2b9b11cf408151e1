"""The sampler: exact counts for any labels, determinism by key, and uniform subsets."""

import collections
import itertools

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crnas_jax.ops import sampler

N = 12
POSITIVE, NEGATIVE, BETWEEN = 1, 0, -1
# (num_samples, positive_fraction): fewer than the boxes, all, more; no positives; only positives;
# 2.7 positives.
VARIANTS = [(8, 0.5), (6, 0.25), (12, 0.5), (20, 0.25), (20, 1.0), (5, 0.0), (4, 1.0), (9, 0.3)]

sample = jax.jit(sampler.sample, static_argnums=(2, 3))
sample_many = jax.jit(jax.vmap(sampler.sample, (0, None, None, None)), static_argnums=(2, 3))

LABELS = hnp.arrays(np.int32, (N,), elements=st.sampled_from([POSITIVE, NEGATIVE, BETWEEN, 2, -7]))


def check(label, num_samples, fraction, samples):
    indices, valid, positive = (np.asarray(part) for part in samples)
    assert indices.shape == valid.shape == positive.shape == (num_samples,)
    positives, negatives = (label == POSITIVE).sum(), (label == NEGATIVE).sum()
    expected_positives = min(positives, int(num_samples * fraction))
    expected_negatives = min(negatives, num_samples - expected_positives)
    assert positive.sum() == expected_positives
    assert valid.sum() == expected_positives + expected_negatives
    # Positives first, then negatives, then padding.
    ranks = np.where(positive, 0, np.where(valid, 1, 2))
    np.testing.assert_array_equal(ranks, np.sort(ranks))
    assert ((indices >= 0) & (indices < len(label))).all()
    assert len(set(indices[valid])) == valid.sum()
    assert (label[indices[positive]] == POSITIVE).all()
    assert (label[indices[valid & ~positive]] == NEGATIVE).all()


@pytest.mark.parametrize(("num_samples", "fraction"), VARIANTS)
@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(0, 2**31 - 1))
@example(np.full(N, POSITIVE, np.int32), 0)
@example(np.full(N, NEGATIVE, np.int32), 0)
@example(np.full(N, BETWEEN, np.int32), 0)
def test_counts_order_and_no_repetition(num_samples, fraction, label, seed):
    samples = sample(jax.random.key(seed), label, num_samples, fraction)
    check(label, num_samples, fraction, samples)


def test_counts_by_hand():
    # Of 4 positives, 5 negatives and 3 boxes of neither kind, 8 are drawn, at most 2 positives.
    label = np.int32([1, 0, -1, 1, 0, 0, -1, 1, 1, 0, 0, -1])
    indices, valid, positive = sample(jax.random.key(3), label, 8, 0.25)
    np.testing.assert_array_equal(positive, [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(valid, [1, 1, 1, 1, 1, 1, 1, 0])
    assert set(np.asarray(indices[:2])) <= {0, 3, 7, 8}
    assert set(np.asarray(indices[2:7])) == {1, 4, 5, 9, 10}


def test_positives_stay_capped_when_there_are_no_negatives():
    _, valid, positive = sample(jax.random.key(0), np.full(N, POSITIVE, np.int32), 8, 0.5)
    np.testing.assert_array_equal(valid, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(positive, valid)


def test_negatives_fill_every_entry_when_there_are_no_positives():
    _, valid, positive = sample(jax.random.key(0), np.full(N, NEGATIVE, np.int32), 8, 0.5)
    assert valid.all()
    assert not positive.any()


def test_no_entry_is_valid_when_no_box_can_be_drawn():
    for label in (np.full(N, BETWEEN, np.int32), np.zeros(0, np.int32)):
        indices, valid, positive = sample(jax.random.key(0), label, 8, 0.5)
        assert indices.shape == (8,)
        assert not valid.any()
        assert not positive.any()


def test_counts_and_order_at_the_sizes_of_a_detector():
    rng = np.random.default_rng(0)
    for num_samples, fraction, positives in ((256, 0.5, 300), (512, 0.25, 40), (512, 0.25, 700)):
        label = np.full(3000, BETWEEN, np.int32)
        places = rng.permutation(3000)
        label[places[:positives]] = POSITIVE
        label[places[positives : positives + 1500]] = NEGATIVE
        samples = sample(jax.random.key(1), label, num_samples, fraction)
        check(label, num_samples, fraction, samples)


def test_equal_keys_draw_equal_samples_and_different_keys_different_ones():
    label = np.int32([1, 0] * 100)
    samples, repeated = (sample(jax.random.key(7), label, 20, 0.5) for _ in range(2))
    for part, repeated_part in zip(samples, repeated, strict=True):
        np.testing.assert_array_equal(part, repeated_part)
    indices, _, _ = samples
    changed, _, _ = sample(jax.random.key(8), label, 20, 0.5)
    assert set(np.asarray(indices[:10])) != set(np.asarray(changed[:10]))
    assert set(np.asarray(indices[10:])) != set(np.asarray(changed[10:]))


def test_every_subset_is_equally_likely():
    # 2 of 5 positives and 3 of 5 negatives give 10 subsets each, and 100 pairs of subsets.
    label = np.int32([0, 1, 1, 0, -1, 0, 1, 0, 1, 1, 0, -1])
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    indices, valid, positive = (np.asarray(part) for part in sample_many(keys, label, 5, 0.4))
    assert valid.all()
    np.testing.assert_array_equal(positive.sum(1), 2)
    pairs = np.sort(indices[:, :2], 1)
    triples = np.sort(indices[:, 2:], 1)
    counts = collections.Counter(
        (tuple(pair), tuple(triple))
        for pair, triple in zip(pairs.tolist(), triples.tolist(), strict=True)
    )
    possible = set(
        itertools.product(
            itertools.combinations(np.flatnonzero(label == 1).tolist(), 2),
            itertools.combinations(np.flatnonzero(label == 0).tolist(), 3),
        )
    )
    assert set(counts) == possible
    # Chi squared with 99 degrees of freedom has mean 99 and deviation 14; the keys are fixed.
    statistic = sum((count - draws / 100) ** 2 / (draws / 100) for count in counts.values())
    assert 40 < statistic < 180


def test_images_of_a_batch_draw_independently():
    label = np.full(50, NEGATIVE, np.int32)
    keys = jax.random.split(jax.random.key(0), 40)
    indices, _, _ = sample_many(keys, label, 5, 0.5)
    assert len({tuple(sorted(row)) for row in np.asarray(indices).tolist()}) > 35
