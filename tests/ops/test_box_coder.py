"""The box coder against the formulas written out in float64, its inverse and its gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from crnas_jax.ops import box_coder

N = 6
RPN, HEAD = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)

encode = jax.jit(box_coder.encode, static_argnums=2)
decode = jax.jit(box_coder.decode, static_argnums=2)

WEIGHTS = st.sampled_from([RPN, HEAD])


@st.composite
def real_boxes(draw):
    """Boxes with sides from a quarter pixel to 500, also outside any image; duplicates happen."""
    corner = draw(hnp.arrays(np.int32, (N, 2), elements=st.integers(-400, 4000)))
    sides = draw(hnp.arrays(np.int32, (N, 2), elements=st.integers(1, 2000)))
    return (np.concatenate([corner, corner + sides], 1) / 4).astype(np.float32)


ANY_BOXES = hnp.arrays(np.int32, (N, 4), elements=st.integers(-50, 1000))
DELTAS = hnp.arrays(np.float32, (N, 4), elements=st.floats(-8, 8, width=32))


def reference_encode(box, reference, weights):
    x1, y1, x2, y2 = (float(value) for value in box)
    px1, py1, px2, py2 = (float(value) for value in reference)
    width, height, pwidth, pheight = x2 - x1, y2 - y1, px2 - px1, py2 - py1
    return [
        weights[0] * ((x1 + x2) / 2 - (px1 + px2) / 2) / pwidth,
        weights[1] * ((y1 + y2) / 2 - (py1 + py2) / 2) / pheight,
        weights[2] * math.log(width / pwidth),
        weights[3] * math.log(height / pheight),
    ]


def reference_decode(delta, reference, weights):
    px1, py1, px2, py2 = (float(value) for value in reference)
    dx, dy, dw, dh = (float(d) / w for d, w in zip(delta, weights, strict=True))
    x = (px1 + px2) / 2 + dx * (px2 - px1)
    y = (py1 + py2) / 2 + dy * (py2 - py1)
    width = (px2 - px1) * math.exp(min(dw, math.log(1000 / 16)))
    height = (py2 - py1) * math.exp(min(dh, math.log(1000 / 16)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def assert_boxes_close(boxes, expected, references, tolerance=2e-6):
    """Assert that corners agree to `tolerance` relative to the largest number in their formula."""
    expected = np.asarray(expected)
    scale = np.maximum(np.abs(expected), np.abs(references)).max(1, keepdims=True) + 1
    sides = np.abs(expected[:, 2:] - expected[:, :2]).max(1, keepdims=True)
    assert (np.abs(np.asarray(boxes) - expected) <= tolerance * (scale + sides)).all()


def test_encode_of_hand_computed_boxes():
    # Centre (10, 20), sides (20, 40) against centre (5, 10), sides (10, 10).
    box, reference = np.float32([[0, 0, 20, 40]]), np.float32([[0, 5, 10, 15]])
    expected = [[0.5, 1.0, math.log(2), math.log(4)]]
    np.testing.assert_allclose(encode(box, reference, RPN), expected, rtol=1e-6)
    expected = [[5.0, 10.0, 5 * math.log(2), 5 * math.log(4)]]
    np.testing.assert_allclose(encode(box, reference, HEAD), expected, rtol=1e-6)


def test_decode_of_hand_computed_deltas():
    reference = np.float32([[0, 5, 10, 15]])
    delta = np.float32([[0.5, 1.0, math.log(2), math.log(4)]])
    np.testing.assert_allclose(decode(delta, reference, RPN), [[0, 0, 20, 40]], atol=1e-5)
    np.testing.assert_array_equal(decode(np.zeros((1, 4), "f"), reference, HEAD), reference)


def test_decode_bounds_growth_by_1000_over_16_but_not_shrinking():
    reference = np.float32([[-8, -8, 8, 8]])
    grown = decode(np.float32([[0, 0, 50, 1e6]]), reference, RPN)
    np.testing.assert_allclose(grown, [[-500, -500, 500, 500]], rtol=1e-6)
    shrunk = decode(np.float32([[0, 0, -10, -10]]), reference, RPN)
    np.testing.assert_allclose(shrunk, reference * np.exp(-10), rtol=1e-5)


def test_the_bound_holds_after_division_by_the_weights():
    reference = np.float32([[0, 0, 2, 2]])
    # 5 log 4 divided by 5 is below the bound although 5 log 4 itself is not.
    delta = np.float32([[0, 0, 5 * math.log(4), 5 * math.log(1e4)]])
    decoded = decode(delta, reference, HEAD)
    np.testing.assert_allclose(decoded, [[-3, 1 - 62.5, 5, 1 + 62.5]], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(real_boxes(), real_boxes(), WEIGHTS)
def test_encode_equals_reference(boxes, references, weights):
    expected = [
        reference_encode(box, reference, weights)
        for box, reference in zip(boxes, references, strict=True)
    ]
    np.testing.assert_allclose(encode(boxes, references, weights), expected, rtol=2e-6, atol=5e-6)


@settings(max_examples=50, deadline=None)
@given(DELTAS, real_boxes(), WEIGHTS)
def test_decode_equals_reference(deltas, references, weights):
    expected = [
        reference_decode(delta, reference, weights)
        for delta, reference in zip(deltas, references, strict=True)
    ]
    assert_boxes_close(decode(deltas, references, weights), expected, references)


@settings(max_examples=50, deadline=None)
@given(real_boxes(), real_boxes(), WEIGHTS)
def test_decode_inverts_encode_where_growth_is_within_the_bound(boxes, references, weights):
    sides = boxes[:, 2:] - boxes[:, :2]
    reference_sides = references[:, 2:] - references[:, :2]
    within = (sides / reference_sides < 62).all(1)
    decoded = np.asarray(decode(encode(boxes, references, weights), references, weights))
    assert_boxes_close(decoded[within], boxes[within], references[within], tolerance=1e-5)


@settings(max_examples=50, deadline=None)
@given(ANY_BOXES, ANY_BOXES, WEIGHTS)
def test_encode_is_finite_for_empty_and_inverted_boxes(boxes, references, weights):
    deltas = encode(boxes.astype(np.float32), references.astype(np.float32), weights)
    assert np.isfinite(deltas).all()


def test_encode_of_padding_is_finite_and_so_is_its_gradient():
    zeros = jnp.zeros((2, 4))
    assert np.isfinite(encode(zeros, zeros, HEAD)).all()
    gradients = jax.grad(lambda a, b: box_coder.encode(a, b, HEAD).sum(), (0, 1))(zeros, zeros)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@settings(max_examples=30, deadline=None)
@given(DELTAS, ANY_BOXES)
def test_decode_of_any_reference_is_finite_and_a_point_stays_where_it_is(deltas, references):
    references = references.astype(np.float32)
    assert np.isfinite(decode(deltas, references, RPN)).all()
    points = np.tile(references[:, :2], 2)
    np.testing.assert_array_equal(decode(deltas, points, RPN), points)


@pytest.mark.parametrize("weights", [RPN, HEAD])
def test_gradients_of_encode_and_decode_equal_finite_differences(weights):
    rng = np.random.default_rng(0)
    corner = rng.uniform(-3, 3, (2, N, 2))
    boxes, references = np.concatenate([corner, corner + rng.uniform(1, 4, (2, N, 2))], -1)
    deltas = rng.uniform(-3, 3, (N, 4))
    with jax.enable_x64(True):
        boxes, references, deltas = (jnp.asarray(part) for part in (boxes, references, deltas))
        for function, first in ((box_coder.encode, boxes), (box_coder.decode, deltas)):
            check_grads(
                jax.jit(lambda a, b, function=function: function(a, b, weights)),
                (first, references),
                order=1,
                modes=["rev"],
                atol=1e-5,
                rtol=1e-5,
            )


def test_gradient_of_decode_by_hand():
    # x2 = px + dx w / 10 + exp(dw / 5) w / 2 for w = 20.
    gradient = jax.grad(lambda d, r: box_coder.decode(d, r, HEAD)[2])(
        jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 20.0, 10.0])
    )
    np.testing.assert_allclose(gradient, [2.0, 0.0, 2.0, 0.0], rtol=1e-6)


def test_gradient_of_decode_vanishes_beyond_the_bound():
    deltas, reference = jnp.array([0.1, 0.1, 30.0, 200.0]), jnp.array([0.0, 0.0, 20.0, 10.0])
    jacobian = jax.jacobian(box_coder.decode)(deltas, reference, RPN)
    assert np.isfinite(jacobian).all()
    np.testing.assert_array_equal(jacobian[:, 2:], 0)


def test_leading_dimensions_are_kept():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 9, (2, 3, 2))
    boxes = jnp.asarray(np.concatenate([corner, corner + 2], -1), jnp.float32)
    references = boxes + 1
    flat = box_coder.encode(boxes.reshape(-1, 4), references.reshape(-1, 4), HEAD)
    deltas = box_coder.encode(boxes, references, HEAD)
    np.testing.assert_array_equal(deltas.reshape(-1, 4), flat)
    assert box_coder.decode(deltas, references, HEAD).shape == (2, 3, 4)
