"""RoIAlign and the choice of level against loops over single samples."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from crnas_jax.ops import roi_align

CANVAS = (64, 96)
SHAPES = ((16, 24), (8, 12), (4, 6), (2, 3))
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
BATCH, ROIS, CHANNELS, POOL_SIZE = 2, 5, 2, 4

align = jax.jit(roi_align.multilevel_roi_align, static_argnums=(3, 4, 5))
roi_levels = jax.jit(roi_align.roi_levels, static_argnums=(1, 2, 3))


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def align_gradient(features, rois, levels, cotangent, canvas, pool_size, aligned):
    return jax.vjp(
        lambda maps: roi_align.multilevel_roi_align(maps, rois, levels, canvas, pool_size, aligned),
        features,
    )[1](cotangent)[0]


# With whole pixels and 4 bins float32 holds every sample position exactly, so samples exactly at
# the limits (-1 and the map's size) are decided alike. Some RoIs are far outside, empty, inverted.
WHOLE_ROIS = hnp.arrays(np.int32, (BATCH, ROIS, 4), elements=st.integers(-100, 200)).map(
    lambda rois: rois.astype(np.float32)
)
SMALL_ROIS = st.builds(
    lambda corner, sides: np.concatenate([corner, corner + sides], -1).astype(np.float32),
    hnp.arrays(np.int32, (BATCH, ROIS, 2), elements=st.integers(-10, 100)),
    hnp.arrays(np.int32, (BATCH, ROIS, 2), elements=st.integers(0, 12)),
)
ANY_ROIS = st.one_of(WHOLE_ROIS, SMALL_ROIS)
LEVELS = hnp.arrays(np.int32, (BATCH, ROIS), elements=st.integers(0, 3))


def corners(size, position):
    """Return the cells a coordinate is interpolated from, with weights; none outside the map."""
    if position < -1.0 or position > size:
        return []
    position = max(position, 0.0)
    low = int(position)
    if low >= size - 1:
        return [(size - 1, 1.0)]
    return [(low, 1.0 - (position - low)), (low + 1, position - low)]


def reference_weights(roi, shape, scale, pool_size, aligned):
    """Return every cell's weight in every bin, [pool_size, pool_size, height, width].

    The rules are those of torchvision's kernel.
    """
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (float(value) * scale - offset for value in roi)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    weights = np.zeros((pool_size, pool_size, *shape))
    for row in range(pool_size):
        for column in range(pool_size):
            for sample_y in (0.25, 0.75):
                for sample_x in (0.25, 0.75):
                    y = y1 + (row + sample_y) * height / pool_size
                    x = x1 + (column + sample_x) * width / pool_size
                    for cell_y, weight_y in corners(shape[0], y):
                        for cell_x, weight_x in corners(shape[1], x):
                            weights[row, column, cell_y, cell_x] += weight_y * weight_x / 4
    return weights


def reference_align(features, rois, levels, scales, pool_size, aligned):
    pooled = np.zeros((*rois.shape[:2], pool_size, pool_size, features[0].shape[-1]))
    for image in range(rois.shape[0]):
        for roi in range(rois.shape[1]):
            level = levels[image, roi]
            map_ = features[level][image].astype(np.float64)
            weights = reference_weights(
                rois[image, roi], map_.shape[:2], scales[level], pool_size, aligned
            )
            pooled[image, roi] = np.einsum("abyx,yxc->abc", weights, map_)
    return pooled


def random_features(shapes=SHAPES, batch=BATCH, channels=CHANNELS, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(batch, *s, channels)).astype(np.float32) for s in shapes)


FEATURES = random_features()


def align_single(map_, roi, canvas, pool_size, aligned):
    """Pool a single RoI from a single map [height, width] to [pool_size, pool_size]."""
    features = (np.asarray(map_, np.float32)[None, :, :, None],)
    rois = np.asarray(roi, np.float32)[None, None]
    levels = np.zeros((1, 1), np.int32)
    return align(features, rois, levels, canvas, pool_size, aligned)[0, 0, :, :, 0]


RAMP = np.arange(4)[None, :] + 10.0 * np.arange(4)[:, None]


def test_ramp_by_hand_unaligned():
    # Scaled (0, 0, 2, 2): samples at 0.25, 0.75 | 1.25, 1.75.
    pooled = align_single(RAMP, [0, 0, 8, 8], (16, 16), 2, False)
    np.testing.assert_allclose(pooled, [[5.5, 6.5], [15.5, 16.5]], rtol=1e-6)


def test_ramp_by_hand_aligned():
    # Half a cell is subtracted: samples at -0.25 (moved to 0), 0.25 | 0.75, 1.25.
    pooled = align_single(RAMP, [0, 0, 8, 8], (16, 16), 2, True)
    np.testing.assert_allclose(pooled, [[1.375, 2.25], [10.125, 11.0]], rtol=1e-6)


def test_a_point_becomes_a_cell_unaligned_and_stays_a_point_aligned():
    # Unaligned: (1, 1) to (2, 2), samples at 1.125, 1.375 | 1.625, 1.875.
    pooled = align_single(RAMP, [4, 4, 4, 4], (16, 16), 2, False)
    np.testing.assert_allclose(pooled, [[13.75, 14.25], [18.75, 19.25]], rtol=1e-6)
    pooled = align_single(RAMP, [4, 4, 4, 4], (16, 16), 2, True)
    np.testing.assert_allclose(pooled, np.full((2, 2), 5.5), rtol=1e-6)


@pytest.mark.parametrize("aligned", [False, True])
def test_an_inverted_roi_by_hand(aligned):
    # Unaligned, it is the cell that starts at its first corner; aligned, its samples run backwards.
    pooled = align_single(RAMP, [8, 8, 4, 4], (16, 16), 1, aligned)
    np.testing.assert_allclose(pooled, [[11 if aligned else 27.5]], rtol=1e-6)


def test_samples_just_outside_move_to_the_border_and_distant_samples_count_as_zero():
    ones = np.ones((4, 4))
    # Scaled x runs from -3 to 1 and samples lie at -2.75, -2.25 ... 0.75: four are beyond -1.
    pooled = align_single(ones, [-12, 0, 4, 16], (16, 16), 4, False)
    np.testing.assert_array_equal(pooled, np.tile([0, 0, 1, 1], (4, 1)))
    # On the far side the limit is the size of the map; scaled x runs from 3 to 7.
    pooled = align_single(ones, [12, 0, 28, 16], (16, 16), 4, False)
    np.testing.assert_array_equal(pooled, np.tile([1, 0, 0, 0], (4, 1)))
    # A sample exactly at -1 or at the size (here a point, aligned) still counts.
    assert align_single(ones, [-2, -2, -2, -2], (16, 16), 1, True)[0, 0] == 1
    assert align_single(ones, [18, 18, 18, 18], (16, 16), 1, True)[0, 0] == 1
    assert align_single(ones, [-2.01, 2, -2.01, 2], (16, 16), 1, True)[0, 0] == 0
    assert align_single(ones, [2, 18.01, 2, 18.01], (16, 16), 1, True)[0, 0] == 0


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("roi", [[-90, 0, -40, 60], [0, 200, 50, 300], [500, 500, 900, 900]])
def test_rois_outside_the_map_give_zeros(roi, aligned):
    pooled = align_single(np.ones((4, 6)), roi, (64, 96), 7, aligned)
    np.testing.assert_array_equal(pooled, np.zeros((7, 7)))


@pytest.mark.parametrize("aligned", [False, True])
@settings(max_examples=40, deadline=None)
@given(ANY_ROIS, LEVELS)
@example(np.zeros((BATCH, ROIS, 4), "f"), np.zeros((BATCH, ROIS), "i"))
@example(np.full((BATCH, ROIS, 4), -4, "f"), np.zeros((BATCH, ROIS), "i"))
@example(np.tile(np.float32([0, 0, 96, 64]), (BATCH, ROIS, 1)), np.full((BATCH, ROIS), 3, "i"))
def test_roi_align_equals_reference_on_any_rois(aligned, rois, levels):
    pooled = align(FEATURES, rois, levels, CANVAS, POOL_SIZE, aligned)
    expected = reference_align(FEATURES, rois, levels, SCALES, POOL_SIZE, aligned)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("aligned", [False, True])
@settings(max_examples=30, deadline=None)
@given(ANY_ROIS, LEVELS, st.integers(0, 1000))
def test_gradient_by_features_equals_reference_on_any_rois(aligned, rois, levels, seed):
    rng = np.random.default_rng(seed)
    cotangent = rng.normal(size=(BATCH, ROIS, POOL_SIZE, POOL_SIZE, CHANNELS)).astype(np.float32)
    gradient = align_gradient(FEATURES, rois, levels, cotangent, CANVAS, POOL_SIZE, aligned)
    expected = [np.zeros(map_.shape) for map_ in FEATURES]
    for image in range(BATCH):
        for roi in range(ROIS):
            level = levels[image, roi]
            weights = reference_weights(
                rois[image, roi], SHAPES[level], SCALES[level], POOL_SIZE, aligned
            )
            expected[level][image] += np.einsum("abyx,abc->yxc", weights, cotangent[image, roi])
    for map_gradient, expected_gradient in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(map_gradient, expected_gradient, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient_by_features_equals_finite_differences(aligned):
    rois = jnp.array([[[3.0, 5.0, 40.0, 31.0], [-9.0, 40.0, 20.0, 80.0], [7.0, 7.0, 7.5, 7.5]]])
    levels = jnp.array([[0, 2, 1]])
    shapes = ((4, 6), (2, 3), (1, 2))
    with jax.enable_x64(True):
        features = tuple(jnp.asarray(map_, float) for map_ in random_features(shapes, 1, 1))
        check_grads(
            jax.jit(
                lambda *maps: roi_align.multilevel_roi_align(
                    maps, rois, levels, (32, 48), 2, aligned
                )
            ),
            features,
            order=1,
            modes=["rev"],
            atol=1e-6,
            rtol=1e-6,
        )


@pytest.mark.parametrize("aligned", [False, True])
def test_seven_bins_and_real_coordinates_equal_reference(aligned):
    rng = np.random.default_rng(4)
    corner = rng.uniform(-20, 80, (BATCH, 40, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 70, (BATCH, 40, 2))], -1).astype("f")
    levels = rng.integers(0, 4, (BATCH, 40)).astype(np.int32)
    pooled = align(FEATURES, rois, levels, CANVAS, 7, aligned)
    expected = reference_align(FEATURES, rois, levels, SCALES, 7, aligned)
    # Positions differ by rounding, about 1e-6 cells, and interpolation does not amplify it.
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("canvas", [(50, 70), (70, 50)])
def test_strides_are_powers_of_two_where_maps_do_not_divide_the_canvas(canvas):
    shapes = tuple(tuple(math.ceil(side / s) for side in canvas) for s in (4, 8, 16, 32))
    features = random_features(shapes, seed=1)
    rng = np.random.default_rng(0)
    corner = rng.integers(-8, 50, (BATCH, 12, 2))
    rois = np.concatenate([corner, corner + rng.integers(0, 60, (BATCH, 12, 2))], -1).astype("f")
    levels = rng.integers(0, 4, (BATCH, 12)).astype(np.int32)
    pooled = align(features, rois, levels, canvas, POOL_SIZE, False)
    expected = reference_align(features, rois, levels, SCALES, POOL_SIZE, False)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=3e-6)


def test_each_roi_is_read_only_from_the_map_of_its_level_and_image():
    features = tuple(
        np.broadcast_to(
            np.float32([10 * level, 10 * level + 1])[:, None, None, None], (2, *shape, 1)
        )
        for level, shape in enumerate(SHAPES)
    )
    rois = np.tile(np.float32([0, 0, 90, 60]), (2, 4, 1))
    levels = np.tile(np.arange(4, dtype=np.int32), (2, 1))
    pooled = align(features, rois, levels, CANVAS, 3, False)
    expected = np.array([[0, 10, 20, 30], [1, 11, 21, 31]])[:, :, None, None, None]
    np.testing.assert_allclose(pooled, np.broadcast_to(expected, pooled.shape), rtol=1e-6)


def reference_level(roi, num_levels, canonical_size, canonical_level):
    x1, y1, x2, y2 = (float(value) for value in roi)
    area = max(x2 - x1, 0) * max(y2 - y1, 0)
    if area == 0:
        return 0
    level = math.floor(canonical_level + math.log2(math.sqrt(area) / canonical_size) + 1e-6)
    return min(max(level, 0), num_levels - 1)


def test_levels_by_hand():
    sides = [1, 55, 111, 112, 223, 224, 447, 448, 2000]
    rois = np.float32([[5, 9, 5 + side, 9 + side] for side in sides])
    np.testing.assert_array_equal(roi_levels(rois, 4, 224.0, 2), [0, 0, 0, 1, 1, 2, 2, 3, 3])
    # The area decides, not the longer side: 112 x 448 is as large as 224 x 224.
    wide = np.float32([[0, 0, 448, 112], [0, 0, 447, 112], [0, 0, 14, 896]])
    np.testing.assert_array_equal(roi_levels(wide, 4, 224.0, 2), [2, 1, 1])


def test_a_side_that_misses_a_boundary_by_rounding_counts_as_reaching_it():
    # The first log2 is 4.5e-7 below a whole number (torchvision adds 1e-6), the second 3.2e-6.
    rois = np.float32([[0, 0, side, side] for side in (223.99993, 223.9995)])
    np.testing.assert_array_equal(roi_levels(rois, 4, 224.0, 2), [2, 1])


def test_empty_and_inverted_rois_are_read_from_the_finest_level():
    rois = np.float32([[0, 0, 0, 0], [900, 900, 0, 0], [0, 0, 900, 0], [900, 0, 0, 900]])
    levels = roi_levels(rois, 4, 224.0, 2)
    assert levels.dtype == np.int32
    np.testing.assert_array_equal(levels, [0, 0, 0, 0])


def test_levels_next_to_every_boundary():
    # Areas within a square pixel of each boundary, where float32 is most likely to fail.
    for canonical_size in (224, 64):
        areas = [(canonical_size * 2**k) ** 2 // 4 + d for k in (0, 1, 2) for d in (-1, 0, 1)]
        rois = np.float32([[0, 0, area, 1] for area in areas])
        expected = [reference_level(roi, 4, canonical_size, 2) for roi in rois]
        assert expected == [0, 1, 1, 1, 2, 2, 2, 3, 3]
        np.testing.assert_array_equal(roi_levels(rois, 4, float(canonical_size), 2), expected)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.int32, (8, 4), elements=st.integers(-100, 1200)),
    st.sampled_from([(4, 224.0, 2), (4, 64.0, 2), (3, 224.0, 1)]),
)
def test_levels_equal_reference(rois, options):
    rois = rois.astype(np.float32)
    expected = [reference_level(roi, *options) for roi in rois]
    np.testing.assert_array_equal(roi_levels(rois, *options), expected)
