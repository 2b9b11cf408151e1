"""The matcher against a loop over boxes and ground truths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crnas_jax.ops import boxes, matcher

N, T = 9, 4
POSITIVE, NEGATIVE, BETWEEN = 1, 0, -1
# (high, low, low_quality): RPN, RPN without forced matches, box head.
VARIANTS = [(0.7, 0.3, True), (0.7, 0.3, False), (0.5, 0.5, False)]

match = jax.jit(matcher.match, static_argnums=(2, 3, 4))
iou = jax.jit(boxes.iou)
match_boxes = jax.jit(
    lambda given_boxes, truth, valid: matcher.match(
        boxes.iou(given_boxes, truth), valid, 0.7, 0.3, True
    )
)

# Thresholds and their neighbours in float32: so few values that most examples have ties.
LEVELS = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0]
LEVELS = sorted(
    {np.float32(v) for v in LEVELS}
    | {np.nextafter(np.float32(v), np.float32(e)) for v in (0.3, 0.5, 0.7) for e in (0, 1)}
)
IOUS = hnp.arrays(np.float32, (N, T), elements=st.sampled_from([float(v) for v in LEVELS]))
VALID = hnp.arrays(np.bool_, (T,))


def reference_match(iou, valid, high, low, low_quality):
    high, low = np.float32(high), np.float32(low)
    indices, labels = [], []
    for row in iou:
        best, index = np.float32(-1), 0
        for truth in range(len(valid)):
            if valid[truth] and row[truth] > best:
                best, index = row[truth], truth
        indices.append(index)
        if best >= high:
            labels.append(POSITIVE)
        elif best < low:
            labels.append(NEGATIVE)
        else:
            labels.append(BETWEEN)
    if low_quality:
        for truth in range(len(valid)):
            if not valid[truth]:
                continue
            largest = max(iou[:, truth])
            for box in range(len(iou)):
                if largest > 0 and iou[box, truth] == largest:
                    labels[box] = POSITIVE
    return indices, labels


def test_constants():
    assert (matcher.POSITIVE, matcher.NEGATIVE, matcher.BETWEEN) == (POSITIVE, NEGATIVE, BETWEEN)


def test_hand_made_example():
    iou = np.float32(
        [
            [0.8, 0.1, 1.0],  # positive for the first truth; the third is padding
            [0.7, 0.7, 0.0],  # at the upper threshold; of the tie the first counts
            [0.3, 0.0, 0.0],  # at the lower threshold: between
            [0.2, 0.29, 0.9],  # below the lower threshold
            [0.0, 0.0, 0.0],  # touches nothing
        ]
    )
    index, label = match(iou, np.array([True, True, False]), 0.7, 0.3, False)
    np.testing.assert_array_equal(index, [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(label, [1, 1, -1, 0, 0])


def test_low_quality_takes_all_ties_and_keeps_the_best_truth_of_each_box():
    iou = np.float32([[0.6, 0.5], [0.1, 0.5], [0.65, 0.2], [0.1, 0.4]])
    index, label = match(iou, np.array([True, True]), 0.7, 0.3, True)
    # Truth 0's best is box 2; truth 1's best are boxes 0 and 1, though box 0 prefers truth 0.
    np.testing.assert_array_equal(index, [0, 1, 0, 1])
    np.testing.assert_array_equal(label, [1, 1, 1, -1])
    _, label = match(iou, np.array([True, True]), 0.7, 0.3, False)
    np.testing.assert_array_equal(label, [-1, -1, -1, -1])


def test_a_truth_that_nothing_touches_makes_no_positive():
    iou = np.float32([[0.0, 0.4], [0.0, 0.0], [0.0, 0.2]])
    _, label = match(iou, np.array([True, True]), 0.7, 0.3, True)
    np.testing.assert_array_equal(label, [1, 0, 0])


@pytest.mark.parametrize(("high", "low", "low_quality"), VARIANTS)
def test_without_truth_every_box_is_negative_with_index_zero(high, low, low_quality):
    iou = np.full((N, T), 0.9, np.float32)
    index, label = match(iou, np.zeros(T, bool), high, low, low_quality)
    np.testing.assert_array_equal(index, np.zeros(N))
    np.testing.assert_array_equal(label, np.full(N, NEGATIVE))


def test_equal_thresholds_leave_nothing_between():
    below, at = np.nextafter(np.float32(0.5), np.float32(0)), np.float32(0.5)
    iou = np.array([[below], [at]], np.float32)
    _, label = match(iou, np.array([True]), 0.5, 0.5, False)
    np.testing.assert_array_equal(label, [NEGATIVE, POSITIVE])


@pytest.mark.parametrize(("high", "low", "low_quality"), VARIANTS)
@settings(max_examples=60, deadline=None)
@given(IOUS, VALID)
@example(np.zeros((N, T), np.float32), np.ones(T, bool))
@example(np.ones((N, T), np.float32), np.ones(T, bool))
@example(np.ones((N, T), np.float32), np.zeros(T, bool))
def test_match_equals_reference(high, low, low_quality, iou, valid):
    index, label = match(iou, valid, high, low, low_quality)
    expected_index, expected_label = reference_match(iou, valid, high, low, low_quality)
    np.testing.assert_array_equal(index, expected_index)
    np.testing.assert_array_equal(label, expected_label)


@settings(max_examples=30, deadline=None)
@given(IOUS, VALID, hnp.arrays(np.float32, (N, T), elements=st.sampled_from([-1.0, 0.0, 1.0])))
def test_values_in_padding_do_not_matter(iou, valid, junk):
    expected = match(iou, valid, 0.7, 0.3, True)
    actual = match(np.where(valid, iou, junk), valid, 0.7, 0.3, True)
    for actual_part, expected_part in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("seed", range(10))
def test_forced_matches_hold_when_iou_is_in_the_same_program(seed):
    # The forced match compares floats for equality, which fusion with the IoU could break.
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 300, (2000, 2))
    given_boxes = np.concatenate([corner, corner + rng.uniform(1, 90, (2000, 2))], 1).astype("f")
    given_boxes[1000:] = given_boxes[:1000]
    truth = given_boxes[:6] + rng.uniform(-30, 30, (6, 4)).astype("f")
    valid = np.array([True, True, True, True, True, False])
    index, label = (np.asarray(part) for part in match_boxes(given_boxes, truth, valid))
    np.testing.assert_array_equal(index[1000:], index[:1000])
    np.testing.assert_array_equal(label[1000:], label[:1000])
    overlap = np.asarray(iou(given_boxes, truth))[:, valid].astype(np.float64)
    for column in overlap.T[overlap.max(0) > 0]:
        best_boxes = np.flatnonzero(column >= column.max() - 1e-9)
        assert len(best_boxes) >= 2
        assert (label[best_boxes] == POSITIVE).all()
    # Up to rounding, every positive is above the threshold or the best box of a truth.
    justified = (overlap.max(1) > 0.7 - 1e-5) | (overlap > overlap.max(0) - 1e-5).any(1)
    assert justified[label == POSITIVE].all()


def test_the_best_box_of_a_truth_is_forced_onto_it():
    """SpineNet's rule: also where the box overlaps another more, and below every threshold."""
    iou = jnp.array([[0.9, 0.6, 0.0], [0.2, 0.1, 0.0], [0.0, 0.3, 0.0], [0.8, 0.6, 0.9]])
    valid = jnp.array([True, True, False])
    index, label = matcher.match(iou, valid, 0.5, 0.5, low_quality=False)
    index, label = matcher.force_best(iou, valid, index, label)
    # Truths 0 and 1 share box 0, which goes to the first; no box is forced onto padding.
    np.testing.assert_array_equal(index, [0, 0, 1, 0])
    np.testing.assert_array_equal(label, [1, 0, 0, 1])
    untouched = jnp.array([[0.0], [0.0]])
    index, label = matcher.force_best(
        untouched, jnp.array([True]), jnp.array([0, 0]), jnp.array([0, 0])
    )
    np.testing.assert_array_equal(label, [0, 0])
