"""Suppression against the textbook greedy loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crnas_jax.ops import nms

N = 14

suppress = jax.jit(nms.nms, static_argnums=3)
suppress_batch = jax.jit(jax.vmap(lambda *image: nms.nms(*image, 0.4)))


@functools.partial(jax.jit, static_argnums=3)
def best_survivors(boxes, scores, groups, candidates_per_round):
    def candidates(index):
        sides = boxes[index, 2:] - boxes[index, :2]
        return boxes[index], (sides > 0).all(1), groups[index]

    return nms.best_survivors(scores, candidates, 0.4, candidates_per_round, 4)


# With small whole coordinates, duplicates, empty and inverted boxes, and an IoU exactly at a
# threshold happen often, and float32 holds every area exactly.
BOXES = hnp.arrays(np.float32, (N, 4), elements=st.integers(0, 7).map(float))
ROOMY = st.builds(
    lambda corner, sides: np.concatenate([corner, corner + sides], 1).astype(np.float32),
    hnp.arrays(np.int32, (N, 2), elements=st.integers(-10, 10)),
    hnp.arrays(np.int32, (N, 2), elements=st.integers(0, 12)),
)
ANY_BOXES = st.one_of(BOXES, ROOMY)
SCORES = hnp.arrays(np.float32, (N,), elements=st.integers(-2, 3).map(lambda v: v / 2))
VALID = hnp.arrays(np.bool_, (N,))
GROUPS = hnp.arrays(np.int32, (N,), elements=st.integers(0, 2))
THRESHOLDS = st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.7, 1.0])


def float32_iou(left, right):
    def area(x1, y1, x2, y2):
        return np.float32(max(x2 - x1, 0)) * np.float32(max(y2 - y1, 0))

    intersection = area(*np.maximum(left[:2], right[:2]), *np.minimum(left[2:], right[2:]))
    union = area(*left) + area(*right) - intersection
    return intersection / union if union > 0 else np.float32(0)


def reference_nms(boxes, scores, valid, threshold, group=None):
    survivors = []
    for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
        if not any(
            (group is None or group[i] == group[k])
            and float32_iou(boxes[k], boxes[i]) > np.float32(threshold)
            for k in survivors
        ):
            survivors.append(i)
    keep = np.zeros(len(boxes), bool)
    keep[survivors] = True
    return keep


def test_hand_made_example():
    boxes = np.float32(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 9],  # IoU 0.9 with the first: suppressed
            [0, 5, 10, 15],  # IoU 1/3 with the first: kept
            [0, 6, 10, 15],  # IoU 0.9 with the third: suppressed
            [20, 20, 30, 30],  # overlaps no box
        ]
    )
    scores = np.float32([0.9, 0.8, 0.7, 0.6, 0.1])
    keep = suppress(boxes, scores, np.ones(5, bool), 0.5)
    np.testing.assert_array_equal(keep, [True, False, True, False, True])


def test_a_suppressed_box_does_not_suppress():
    # Each box has an IoU of 2 / 4 with the next and 1 / 5 with the one after it.
    boxes = np.float32([[i, 0, i + 3, 1] for i in range(64)])
    scores = np.arange(64, 0, -1).astype(np.float32)
    keep = suppress(boxes, scores, np.ones(64, bool), 0.4)
    np.testing.assert_array_equal(keep, [i % 2 == 0 for i in range(64)])
    # From the other end, the last box wins.
    keep = suppress(boxes, -scores, np.ones(64, bool), 0.4)
    np.testing.assert_array_equal(keep, [i % 2 == 1 for i in range(64)])


def test_iou_at_the_threshold_does_not_suppress():
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 7]])
    scores, valid = np.float32([1, 0]), np.ones(2, bool)
    np.testing.assert_array_equal(suppress(boxes, scores, valid, 0.7), [True, True])
    below = float(np.nextafter(np.float32(0.7), np.float32(0)))
    np.testing.assert_array_equal(suppress(boxes, scores, valid, below), [True, False])


def test_the_lower_index_is_kept_among_equal_scores():
    boxes = np.tile(np.float32([[3, 3, 9, 9]]), (6, 1))
    valid = np.array([False, True, True, True, True, True])
    keep = suppress(boxes, np.zeros(6, np.float32), valid, 0.5)
    np.testing.assert_array_equal(keep, [False, True, False, False, False, False])
    # Minus zero and zero are equal scores.
    keep = suppress(boxes, np.float32([0, -0.0, 0, -0.0, 0, 0]), valid, 0.5)
    np.testing.assert_array_equal(keep, [False, True, False, False, False, False])


def test_groups_do_not_suppress_each_other():
    boxes = np.tile(np.float32([[0, 0, 4, 4]]), (5, 1))
    scores = np.float32([0.1, 0.9, 0.8, 0.7, 0.3])
    keep = suppress(boxes, scores, np.ones(5, bool), 0.5, np.int32([7, 2, 7, 2, 0]))
    np.testing.assert_array_equal(keep, [False, True, True, False, True])


def test_empty_boxes_neither_suppress_nor_are_suppressed():
    boxes = np.float32([[2, 2, 2, 2], [2, 2, 2, 2], [5, 5, 1, 1], [0, 0, 6, 6], [5, 5, 1, 1]])
    keep = suppress(boxes, np.float32([5, 4, 3, 2, 1]), np.ones(5, bool), 0.0)
    assert keep.all()


@settings(max_examples=60, deadline=None)
@given(ANY_BOXES, SCORES, VALID, THRESHOLDS)
@example(np.tile(np.float32([0, 0, 2, 2]), (N, 1)), np.zeros(N, "f"), np.ones(N, bool), 0.5)
@example(np.tile(np.float32([0, 0, 2, 2]), (N, 1)), np.zeros(N, "f"), np.zeros(N, bool), 0.5)
@example(np.tile(np.float32([2, 2, 0, 0]), (N, 1)), np.zeros(N, "f"), np.ones(N, bool), 0.0)
def test_nms_equals_greedy_reference(boxes, scores, valid, threshold):
    keep = suppress(boxes, scores, valid, threshold)
    np.testing.assert_array_equal(keep, reference_nms(boxes, scores, valid, threshold))


@settings(max_examples=60, deadline=None)
@given(ANY_BOXES, SCORES, VALID, THRESHOLDS, GROUPS)
def test_nms_with_groups_equals_greedy_reference(boxes, scores, valid, threshold, group):
    keep = suppress(boxes, scores, valid, threshold, group)
    np.testing.assert_array_equal(keep, reference_nms(boxes, scores, valid, threshold, group))


@settings(max_examples=30, deadline=None)
@given(ANY_BOXES, SCORES, VALID, THRESHOLDS)
def test_values_in_invalid_entries_do_not_matter(boxes, scores, valid, threshold):
    expected = suppress(boxes, scores, valid, threshold)
    for junk_box, junk_score in ((np.nan, np.nan), (0.0, np.inf), (3.0, -np.inf)):
        keep = suppress(
            np.where(valid[:, None], boxes, np.float32(junk_box)),
            np.where(valid, scores, np.float32(junk_score)),
            valid,
            threshold,
        )
        np.testing.assert_array_equal(keep, expected)


@pytest.mark.parametrize("seed", range(4))
def test_many_clustered_boxes_equal_greedy_reference(seed):
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 60, (150, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 30, (150, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 40, 150).astype(np.float32)
    valid, group = rng.random(150) < 0.9, rng.integers(0, 3, 150).astype(np.int32)
    for threshold in (0.3, 0.5, 0.7):
        keep = suppress(boxes, scores, valid, threshold, group)
        expected = reference_nms(boxes, scores, valid, threshold, group)
        np.testing.assert_array_equal(keep, expected)


def test_images_that_need_different_numbers_of_rounds_share_a_batch():
    # A chain needs many rounds, duplicates two, distant boxes one; the last image has no boxes.
    chain = [[i, 0, i + 3, 1] for i in range(16)]
    same = [[0, 0, 3, 1]] * 16
    apart = [[10 * i, 0, 10 * i + 3, 1] for i in range(16)]
    boxes = np.float32([chain, same, apart, same])
    scores = np.tile(np.arange(16, 0, -1).astype(np.float32), (4, 1))
    valid = np.ones((4, 16), bool)
    valid[3] = False
    keep = suppress_batch(boxes, scores, valid)
    expected = [reference_nms(*image, 0.4) for image in zip(boxes, scores, valid, strict=True)]
    np.testing.assert_array_equal(keep, expected)
    np.testing.assert_array_equal(keep.sum(1), [8, 1, 16, 0])


def test_nms_of_no_boxes_is_empty():
    keep = nms.nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, bool), 0.5)
    assert keep.shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    ANY_BOXES, hnp.arrays(np.float32, (N,), elements=st.integers(0, 5).map(lambda v: v / 4)), GROUPS
)
def test_best_survivors_equal_suppression_over_all_candidates(boxes, scores, groups):
    """Scores of 0 and boxes without size are no candidates, however many enter in a round."""
    counts = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    keep = reference_nms(boxes, scores, (scores > 0) & counts, 0.4, groups)
    order = [i for i in sorted(range(N), key=lambda i: (-scores[i], i)) if keep[i]][:4]
    for candidates_per_round in (1, 3, N):
        best_boxes, best_scores, best_groups = best_survivors(
            jnp.asarray(boxes), jnp.asarray(scores), jnp.asarray(groups), candidates_per_round
        )
        np.testing.assert_array_equal(best_boxes[: len(order)], boxes[order])
        np.testing.assert_array_equal(
            best_scores, np.append(scores[order], np.zeros(4 - len(order)))
        )
        np.testing.assert_array_equal(best_groups[: len(order)], groups[order])
