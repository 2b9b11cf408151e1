"""Losses against loops in float64, and their gradients against derivatives by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from crnas_jax.ops import losses

IMAGES, SAMPLES, ROIS, CLASSES = 2, 5, 7, 4
BETA = 1 / 9

smooth_l1 = jax.jit(losses.smooth_l1, static_argnums=1)
smooth_l1_slope = jax.jit(
    lambda error, beta: jax.vmap(jax.grad(lambda e: losses.smooth_l1(e, beta)))(error),
    static_argnums=1,
)
rpn_losses = jax.jit(losses.rpn_losses)
box_head_losses = jax.jit(losses.box_head_losses)


@functools.partial(jax.jit, static_argnums=0)
def gradients(function, *arguments):
    """Return the derivatives of both losses by logits and by deltas."""
    return tuple(
        jax.grad(lambda *a, part=part: function(*a)[part], (0, 1))(*arguments) for part in (0, 1)
    )


def floats(*shape, limit=20):
    return hnp.arrays(np.float32, shape, elements=st.floats(-limit, limit, width=32))


# Errors around the bend of the smooth L1 loss and far from it.
def errors(*shape):
    return st.one_of(floats(*shape, limit=0.25), floats(*shape))


MASKS = hnp.arrays(np.bool_, (IMAGES, SAMPLES))
ROI_MASKS = hnp.arrays(np.bool_, (ROIS,))
LABELS = hnp.arrays(np.int32, (ROIS,), elements=st.integers(0, CLASSES - 1))


def reference_smooth_l1(error, beta=BETA):
    size = abs(float(error))
    return 0.5 * size * size / beta if size < beta else size - 0.5 * beta


def reference_slope(error, beta=BETA):
    error = float(error)
    return error / beta if abs(error) < beta else math.copysign(1.0, error)


def reference_rpn(logits, deltas, targets, sampled, positive):
    num_sampled = objectness = box = 0.0
    for place in np.ndindex(*sampled.shape):
        if not sampled[place]:
            continue
        num_sampled += 1
        logit = float(logits[place])
        # -log sigmoid(z) = log(1 + exp(-z)) for a positive, of -z for a negative.
        objectness += math.log1p(math.exp(-logit if positive[place] else logit))
        if positive[place]:
            box += sum(
                reference_smooth_l1(float(d) - float(t))
                for d, t in zip(deltas[place], targets[place], strict=True)
            )
    return objectness / max(num_sampled, 1), box / max(num_sampled, 1)


def reference_head(logits, deltas, labels, targets, sampled):
    num_sampled = cross_entropy = box = 0.0
    for roi in range(len(labels)):
        if not sampled[roi]:
            continue
        num_sampled += 1
        row = [float(value) for value in logits[roi]]
        cross_entropy += math.log(sum(math.exp(value - row[labels[roi]]) for value in row))
        if labels[roi] > 0:
            class_deltas = deltas[roi, labels[roi]]
            box += sum(
                reference_smooth_l1(float(d) - float(t))
                for d, t in zip(class_deltas, targets[roi], strict=True)
            )
    return cross_entropy / max(num_sampled, 1), box / max(num_sampled, 1)


def test_smooth_l1_by_hand():
    np.testing.assert_allclose(
        smooth_l1(np.float32([0, 0.5, -0.5, 1, -3]), 1.0), [0, 0.125, 0.125, 0.5, 2.5], rtol=1e-6
    )
    # beta 1/9: 4.5 e^2 below, |e| - 1/18 above.
    values = losses.smooth_l1(jnp.array([0.1, -0.1, 1 / 9, 1.0, -2.0]))
    np.testing.assert_allclose(values, [0.045, 0.045, 1 / 18, 17 / 18, 35 / 18], rtol=1e-5)


def test_the_default_beta_is_one_ninth_as_in_torchvision():
    assert pytest.approx(1 / 9) == losses.BOX_BETA


@settings(max_examples=50, deadline=None)
@given(errors(8), st.sampled_from([BETA, 0.5, 1.0]))
@example(np.float32([0, -0.0, BETA, -BETA, 0.5, -0.5, 1, -1]), BETA)
@example(np.float32([0, -0.0, BETA, -BETA, 0.5, -0.5, 1, -1]), 0.5)
def test_smooth_l1_and_its_slope_equal_reference(error, beta):
    expected = [reference_smooth_l1(e, beta) for e in error]
    np.testing.assert_allclose(smooth_l1(error, beta), expected, rtol=2e-6, atol=1e-7)
    # At the bend both branches have the same slope, so rounding there does not matter.
    expected = [reference_slope(e, beta) for e in error]
    np.testing.assert_allclose(smooth_l1_slope(error, beta), expected, rtol=2e-6, atol=1e-7)


def test_rpn_losses_by_hand():
    # Three anchors are sampled, one of them positive; one entry is empty.
    logits = np.float32([[0, math.log(3)], [-math.log(3), 50]])
    sampled = np.array([[True, True], [True, False]])
    positive = np.array([[False, True], [False, False]])
    deltas, targets = np.zeros((2, 2, 4), "f"), np.zeros((2, 2, 4), "f")
    deltas[0, 1] = [1, 0, 0, -0.1]
    targets[0, 1] = [0, 0, 2, 0]
    deltas[1, 0] = 9
    objectness, box = rpn_losses(logits, deltas, targets, sampled, positive)
    np.testing.assert_allclose(objectness, (math.log(2) + 2 * math.log(4 / 3)) / 3, rtol=1e-6)
    np.testing.assert_allclose(box, (17 / 18 + 35 / 18 + 0.045) / 3, rtol=1e-6)


def test_box_head_losses_by_hand():
    # One positive of class 2, one background, one empty entry.
    logits = np.float32([[0, 0, math.log(2)], [0, 0, 0], [9, -9, 9]])
    labels = np.int32([2, 0, 1])
    deltas = np.full((3, 3, 4), 7, "f")
    deltas[0, 2] = [1, 2, 3, 4]
    targets = np.float32([[1, 2, 3, 3], [0, 0, 0, 0], [0, 0, 0, 0]])
    sampled = np.array([True, True, False])
    classes, box = box_head_losses(logits, deltas, labels, targets, sampled)
    np.testing.assert_allclose(classes, (math.log(2) + math.log(3)) / 2, rtol=1e-6)
    np.testing.assert_allclose(box, 17 / 18 / 2, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    floats(IMAGES, SAMPLES),
    errors(IMAGES, SAMPLES, 4),
    errors(IMAGES, SAMPLES, 4),
    MASKS,
    MASKS,
)
def test_rpn_losses_and_gradients_equal_reference(logits, deltas, targets, sampled, positive):
    positive &= sampled
    arguments = (logits, deltas, targets, sampled, positive)
    np.testing.assert_allclose(
        rpn_losses(*arguments), reference_rpn(*arguments), rtol=5e-6, atol=1e-6
    )
    num_sampled = max(sampled.sum(), 1)
    sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
    by_logits = np.where(sampled, sigmoid - positive, 0) / num_sampled
    slopes = np.vectorize(reference_slope)(deltas.astype(np.float64) - targets)
    by_deltas = np.where(positive[..., None], slopes, 0) / num_sampled
    objectness_gradients, box_gradients = gradients(losses.rpn_losses, *arguments)
    np.testing.assert_allclose(objectness_gradients[0], by_logits, rtol=1e-5, atol=1e-6)
    # A difference of float32 near 20 is off by up to 1e-6, times the second derivative of 9.
    np.testing.assert_allclose(box_gradients[1], by_deltas, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(objectness_gradients[1], 0)
    np.testing.assert_array_equal(box_gradients[0], 0)


@settings(max_examples=50, deadline=None)
@given(
    floats(ROIS, CLASSES),
    errors(ROIS, CLASSES, 4),
    LABELS,
    errors(ROIS, 4),
    ROI_MASKS,
)
def test_box_head_losses_and_gradients_equal_reference(logits, deltas, labels, targets, sampled):
    arguments = (logits, deltas, labels, targets, sampled)
    np.testing.assert_allclose(
        box_head_losses(*arguments), reference_head(*arguments), rtol=5e-6, atol=2e-6
    )
    num_sampled = max(sampled.sum(), 1)
    by_logits, by_deltas = np.zeros(logits.shape), np.zeros(deltas.shape)
    for roi in np.flatnonzero(sampled):
        exponentials = np.exp(logits[roi].astype(np.float64))
        by_logits[roi] = exponentials / exponentials.sum()
        by_logits[roi, labels[roi]] -= 1
        if labels[roi] > 0:
            error = deltas[roi, labels[roi]].astype(np.float64) - targets[roi]
            by_deltas[roi, labels[roi]] = [reference_slope(e) for e in error]
    class_gradients, box_gradients = gradients(losses.box_head_losses, *arguments)
    np.testing.assert_allclose(class_gradients[0], by_logits / num_sampled, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(box_gradients[1], by_deltas / num_sampled, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(class_gradients[1], 0)
    np.testing.assert_array_equal(box_gradients[0], 0)


def test_loss_and_gradient_are_zero_when_nothing_is_sampled():
    rng = np.random.default_rng(0)
    rpn = (
        *(rng.normal(size=(IMAGES, SAMPLES, *s)).astype("f") for s in ((), (4,), (4,))),
        np.zeros((IMAGES, SAMPLES), bool),
        np.zeros((IMAGES, SAMPLES), bool),
    )
    head = (
        rng.normal(size=(ROIS, CLASSES)).astype("f"),
        rng.normal(size=(ROIS, CLASSES, 4)).astype("f"),
        np.ones(ROIS, np.int32),
        rng.normal(size=(ROIS, 4)).astype("f"),
        np.zeros(ROIS, bool),
    )
    for function, arguments in ((losses.rpn_losses, rpn), (losses.box_head_losses, head)):
        assert [float(part) for part in jax.jit(function)(*arguments)] == [0, 0]
        for gradient in jax.tree.leaves(gradients(function, *arguments)):
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("junk", [1e10, -1e10])
def test_values_in_empty_entries_do_not_matter(junk):
    rng = np.random.default_rng(1)
    sampled = np.array([[True, True, False, True, False], [False, True, True, False, False]])
    positive = sampled & (rng.random(sampled.shape) < 0.5)
    logits, deltas, targets = (
        rng.normal(size=(IMAGES, SAMPLES, *s)).astype("f") for s in ((), (4,), (4,))
    )
    expected = rpn_losses(logits, deltas, targets, sampled, positive)
    changed = (
        np.where(sampled, logits, np.float32(junk)),
        deltas,
        np.where(positive[..., None], targets, np.float32(junk)),
        sampled,
        positive,
    )
    np.testing.assert_array_equal(rpn_losses(*changed), expected)
    for gradient in jax.tree.leaves(gradients(losses.rpn_losses, *changed)):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[~sampled], 0)

    sampled = np.array([True, False, True, True, False, False, True])
    labels = np.int32([1, 2, 0, 3, 3, 0, 2])
    logits, deltas, targets = (
        rng.normal(size=(ROIS, *s)).astype("f") for s in ((CLASSES,), (CLASSES, 4), (4,))
    )
    expected = box_head_losses(logits, deltas, labels, targets, sampled)
    changed = (
        np.where(sampled[:, None], logits, np.float32(junk)),
        np.where(sampled[:, None, None], deltas, np.float32(-junk)),
        labels,
        np.where((sampled & (labels > 0))[:, None], targets, np.float32(junk)),
        sampled,
    )
    np.testing.assert_array_equal(box_head_losses(*changed), expected)
    for gradient in jax.tree.leaves(gradients(losses.box_head_losses, *changed)):
        assert np.isfinite(gradient).all()
        np.testing.assert_array_equal(gradient[~sampled], 0)


def test_extreme_logits_stay_finite():
    logits = np.float32([[1e4, -1e4]])
    boxes, mask = np.zeros((1, 2, 4), "f"), np.ones((1, 2), bool)
    objectness, _ = rpn_losses(logits, boxes, boxes, mask, np.array([[False, True]]))
    np.testing.assert_allclose(objectness, 1e4)
    classes, _ = box_head_losses(
        np.float32([[1e4, -1e4]]),
        np.zeros((1, 2, 4), "f"),
        np.int32([1]),
        np.zeros((1, 4), "f"),
        np.array([True]),
    )
    np.testing.assert_allclose(classes, 2e4)


def test_gradients_equal_finite_differences():
    rng = np.random.default_rng(2)
    sampled = jnp.asarray(rng.random((IMAGES, SAMPLES)) < 0.7)
    positive = sampled & (rng.random((IMAGES, SAMPLES)) < 0.6)
    labels = jnp.asarray(rng.integers(0, CLASSES, ROIS), jnp.int32)
    roi_sampled = jnp.asarray(rng.random(ROIS) < 0.7)
    with jax.enable_x64(True):
        rpn = [jnp.asarray(rng.normal(size=(IMAGES, SAMPLES, *s))) for s in ((), (4,), (4,))]
        head = [jnp.asarray(rng.normal(size=(ROIS, *s))) for s in ((CLASSES,), (CLASSES, 4), (4,))]
        tolerances = {"order": 1, "modes": ["rev"], "atol": 1e-6, "rtol": 1e-6}
        check_grads(jax.jit(lambda *a: losses.rpn_losses(*a, sampled, positive)), rpn, **tolerances)
        check_grads(
            jax.jit(
                lambda logits, deltas, targets: losses.box_head_losses(
                    logits, deltas, labels, targets, roi_sampled
                )
            ),
            head,
            **tolerances,
        )
        # Away from the bends at 0 and beta, where finite differences are no reference.
        check_grads(jax.jit(losses.smooth_l1), (jnp.array([-2.0, -0.05, 0.03, 0.2]),), **tolerances)


def test_focal_loss_of_literal_logits():
    """At probability 0.8: 0.25 x 0.2^1.5 x -log 0.8 if right, 0.75 x 0.8^1.5 x -log 0.2 if not."""
    logits, targets = jnp.log(jnp.array([4.0, 4.0])), jnp.array([True, False])
    value = losses.focal(logits, targets, 0.25, 1.5)
    expected = [0.25 * 0.2**1.5 * -np.log(0.8), 0.75 * 0.8**1.5 * -np.log(0.2)]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # With smoothing of 0.2 the cross-entropy is against 0.9 and 0.1.
    smooth = losses.focal(logits, targets, 0.25, 1.5, 0.2)
    entropies = np.array([-0.9 * np.log(0.8) - 0.1 * np.log(0.2)] * 2)
    entropies[1] = -0.1 * np.log(0.8) - 0.9 * np.log(0.2)
    np.testing.assert_allclose(
        smooth, np.array([0.25 * 0.2**1.5, 0.75 * 0.8**1.5]) * entropies, rtol=1e-6
    )
    extreme = jnp.array([200.0, -200.0])
    gradient = jax.grad(lambda x: losses.focal(x, targets, 0.25, 1.5).sum())(extreme)
    assert np.isfinite(gradient).all()


def test_huber_loss_of_literal_errors():
    value = losses.huber(jnp.array([0.05, -0.1, 0.3]), 0.1)
    np.testing.assert_allclose(value, [0.00125, 0.005, 0.1 * 0.3 - 0.005], rtol=1e-5)


def test_giou_of_literal_boxes():
    """Two unit squares a unit apart: no intersection, a hull of 3, so 1 + 1/3."""
    boxes = jnp.array([[0.0, 0, 1, 1], [0.0, 0, 2, 2]])
    others = jnp.array([[2.0, 0, 3, 1], [0.0, 0, 2, 2]])
    np.testing.assert_allclose(losses.giou(boxes, others), [4 / 3, 0], atol=1e-6)


def test_label_smoothing_of_the_box_head_is_optaxs():
    rng = np.random.default_rng(0)
    logits, labels = jnp.array(rng.normal(0, 1, (6, 4)), jnp.float32), jnp.arange(6) % 4
    args = (jnp.zeros((6, 4, 4)), labels, jnp.zeros((6, 4)), jnp.ones(6, bool))
    smoothed, _ = losses.box_head_losses(logits, *args, label_smoothing=0.1)
    targets = optax.smooth_labels(jnp.eye(4)[labels], 0.1)
    expected = optax.softmax_cross_entropy(logits, targets).mean()
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)
