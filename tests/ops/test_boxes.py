"""Box operations against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crnas_jax.ops import boxes

N, M = 7, 5

area = jax.jit(boxes.area)
iou = jax.jit(boxes.iou)
clip = jax.jit(boxes.clip)
larger_than = jax.jit(boxes.larger_than, static_argnums=1)


def any_boxes(num_boxes):
    """Draw boxes on a coarse grid: many are empty, inside out, duplicates or touch each other."""
    corners = hnp.arrays(np.int32, (num_boxes, 4), elements=st.integers(-24, 40))
    return st.builds(lambda c, s: (c * s).astype(np.float32), corners, st.sampled_from([1 / 4, 8]))


def reference_area(box):
    x1, y1, x2, y2 = (float(value) for value in box)
    return (x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0


def reference_iou(left, right):
    intersection = reference_area(
        [
            max(left[0], right[0]),
            max(left[1], right[1]),
            min(left[2], right[2]),
            min(left[3], right[3]),
        ]
    )
    union = reference_area(left) + reference_area(right) - intersection
    return intersection / union if union > 0 else 0.0


def random_boxes(seed, num_boxes):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-50, 300, (num_boxes, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 200, (num_boxes, 2))], 1).astype("f")


def test_area_of_hand_computed_boxes():
    given_boxes = [[0, 0, 2, 3], [-1, -1, 1, 1], [5, 5, 5, 9], [4, 0, 1, 3], [4, 4, 1, 1]]
    np.testing.assert_array_equal(area(np.array(given_boxes, np.float32)), [6, 4, 0, 0, 0])


def test_iou_of_hand_computed_boxes():
    left = np.array([[0, 0, 10, 10]], np.float32)
    right = [
        [0, 0, 10, 10],  # the same box
        [5, 0, 15, 10],  # 50 / 150
        [0, 0, 10, 7],  # 70 / 100
        [2, 2, 4, 4],  # 4 / 100
        [10, 0, 20, 10],  # only an edge in common
        [3, 3, 3, 8],  # a line inside
        [8, 8, 2, 2],  # inside out
        [30, 30, 40, 40],  # far away
    ]
    ious = iou(left, np.array(right, np.float32))[0]
    np.testing.assert_array_equal(ious, np.array([1, 1 / 3, 0.7, 0.04, 0, 0, 0, 0], np.float32))


@settings(max_examples=50, deadline=None)
@given(any_boxes(N))
def test_area_equals_reference(given_boxes):
    expected = [reference_area(box) for box in given_boxes]
    np.testing.assert_array_equal(area(given_boxes), expected)


@settings(max_examples=60, deadline=None)
@given(any_boxes(N), any_boxes(M))
def test_iou_equals_reference_on_any_boxes(left, right):
    expected = [[reference_iou(a, b) for b in right] for a in left]
    np.testing.assert_allclose(iou(left, right), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_iou_equals_reference_on_real_coordinates(seed):
    left, right = random_boxes(seed, N), random_boxes(seed + 100, M)
    expected = [[reference_iou(a, b) for b in right] for a in left]
    np.testing.assert_allclose(iou(left, right), expected, rtol=2e-6, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(any_boxes(N))
def test_iou_of_a_box_with_itself_is_one_or_zero_if_empty(given_boxes):
    expected = [float(reference_area(box) > 0) for box in given_boxes]
    np.testing.assert_array_equal(np.diag(iou(given_boxes, given_boxes)), expected)


def test_iou_is_symmetric_bounded_and_equal_for_duplicates():
    given_boxes = random_boxes(0, 50)
    given_boxes[25:] = given_boxes[:25]
    ious = np.asarray(iou(given_boxes, given_boxes))
    np.testing.assert_allclose(ious, ious.T, rtol=1e-6, atol=1e-7)
    assert ious.min() >= 0
    assert ious.max() <= 1
    np.testing.assert_array_equal(np.diag(ious), 1)
    np.testing.assert_array_equal(ious[25:], ious[:25])


def test_iou_without_boxes_has_an_empty_side():
    assert boxes.iou(jnp.zeros((0, 4)), jnp.zeros((3, 4))).shape == (0, 3)
    assert boxes.iou(jnp.zeros((3, 4)), jnp.zeros((0, 4))).shape == (3, 0)


def test_clip_limits_x_to_the_width_and_y_to_the_height():
    given_boxes = np.array(
        [[-5, -6, 50, 60], [1, 2, 3, 4], [40, 50, 60, 70], [-9, -9, -1, -1]], np.float32
    )
    expected = [[0, 0, 30, 20], [1, 2, 3, 4], [30, 20, 30, 20], [0, 0, 0, 0]]
    np.testing.assert_array_equal(clip(given_boxes, np.array([20, 30])), expected)


@settings(max_examples=50, deadline=None)
@given(any_boxes(N), st.integers(1, 200), st.integers(1, 200))
def test_clip_equals_reference_and_is_idempotent(given_boxes, height, width):
    size = np.array([height, width], np.int32)
    expected = [
        [min(max(float(value), 0.0), float((width, height)[i % 2])) for i, value in enumerate(box)]
        for box in given_boxes
    ]
    clipped = clip(given_boxes, size)
    np.testing.assert_array_equal(clipped, expected)
    np.testing.assert_array_equal(clip(clipped, size), expected)


@settings(max_examples=50, deadline=None)
@given(any_boxes(N), st.sampled_from([0.0, 0.25, 0.5, 8.0, 16.0]))
def test_larger_than_includes_equality_and_needs_both_sides(given_boxes, side):
    expected = [x2 - x1 >= side and y2 - y1 >= side for x1, y1, x2, y2 in given_boxes]
    np.testing.assert_array_equal(larger_than(given_boxes, side), expected)


def test_larger_than_of_hand_made_boxes():
    given_boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.5], [0, 0, 0.5, 1], [1, 1, 0, 0]], np.float32)
    np.testing.assert_array_equal(larger_than(given_boxes, 1.0), [True, False, False, False])


def test_leading_dimensions_are_kept():
    given_boxes = jnp.asarray(random_boxes(3, 12))
    stacked = given_boxes.reshape(3, 4, 4)
    np.testing.assert_array_equal(boxes.area(stacked).reshape(-1), boxes.area(given_boxes))
    assert boxes.clip(stacked, jnp.array([9, 9])).shape == (3, 4, 4)
    assert boxes.larger_than(stacked, 1.0).shape == (3, 4)
