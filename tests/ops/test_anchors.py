"""Pyramid anchors against torchvision's numbers and a loop over cells."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crnas_jax.ops import anchors

# Base anchors of torchvision's AnchorGenerator for sizes 32..512 and ratios 0.5, 1, 2.
TORCHVISION = {
    32.0: [(-23, -11, 23, 11), (-16, -16, 16, 16), (-11, -23, 11, 23)],
    64.0: [(-45, -23, 45, 23), (-32, -32, 32, 32), (-23, -45, 23, 45)],
    128.0: [(-91, -45, 91, 45), (-64, -64, 64, 64), (-45, -91, 45, 91)],
    256.0: [(-181, -91, 181, 91), (-128, -128, 128, 128), (-91, -181, 91, 181)],
    512.0: [(-362, -181, 362, 181), (-256, -256, 256, 256), (-181, -362, 181, 362)],
}


def reference_base(size, ratio):
    height, width = size * math.sqrt(ratio), size / math.sqrt(ratio)
    # Python's round, like torch's, rounds halves to the even neighbour.
    return [round(-width / 2), round(-height / 2), round(width / 2), round(height / 2)]


def reference_level(canvas, grid, size, ratios):
    boxes = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            for ratio in ratios:
                x, y = column * (canvas[1] // grid[1]), row * (canvas[0] // grid[0])
                x1, y1, x2, y2 = reference_base(size, ratio)
                boxes.append([x + x1, y + y1, x + x2, y + y2])
    return boxes


@pytest.mark.parametrize("size", TORCHVISION)
def test_base_anchors_equal_those_of_torchvision(size):
    base = anchors.base_anchors(size)
    assert base.dtype == np.float32
    np.testing.assert_array_equal(base, TORCHVISION[size])


def test_halves_are_rounded_to_even_as_torch_does():
    np.testing.assert_array_equal(anchors.base_anchors(5.0, (1.0,)), [[-2, -2, 2, 2]])
    np.testing.assert_array_equal(anchors.base_anchors(7.0, (1.0,)), [[-4, -4, 4, 4]])


def test_a_ratio_is_height_over_width():
    x1, y1, x2, y2 = anchors.base_anchors(64.0, (4.0,))[0]
    assert (x2 - x1, y2 - y1) == (32, 128)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 600), st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.7, 2.0, 3.0]), min_size=1))
def test_base_anchors_equal_reference(size, ratios):
    expected = [reference_base(size, ratio) for ratio in ratios]
    np.testing.assert_array_equal(anchors.base_anchors(size, tuple(ratios)), expected)


def test_pyramid_of_a_tiny_canvas_by_hand():
    # Strides 4 (height) and 2 (width), then one cell at the origin.
    fine, coarse = anchors.pyramid_anchors((8, 4), ((2, 2), (1, 1)), (8.0, 16.0), (1.0,))
    np.testing.assert_array_equal(
        fine, [[-4, -4, 4, 4], [-2, -4, 6, 4], [-4, 0, 4, 8], [-2, 0, 6, 8]]
    )
    np.testing.assert_array_equal(coarse, [[-8, -8, 8, 8]])


def test_anchors_are_ordered_by_y_then_x_then_ratio():
    (level,) = anchors.pyramid_anchors((64, 96), ((2, 3),), (32.0,))
    base = np.array(TORCHVISION[32.0])
    centres = [(0, 0), (32, 0), (64, 0), (0, 32), (32, 32), (64, 32)]
    expected = np.concatenate([base + np.array([x, y, x, y]) for x, y in centres])
    np.testing.assert_array_equal(level, expected)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.sampled_from([8.0, 32.0, 45.5, 512.0])),
        min_size=1,
        max_size=4,
    ),
)
def test_pyramid_equals_loops_for_any_canvas_and_grid(canvas, levels):
    # Grids need not divide the canvas: the stride is the integer quotient on each axis.
    grids = tuple((rows, columns) for rows, columns, _ in levels)
    sizes = tuple(size for _, _, size in levels)
    pyramid = anchors.pyramid_anchors(canvas, grids, sizes)
    assert len(pyramid) == len(levels)
    for level, grid, size in zip(pyramid, grids, sizes, strict=True):
        assert level.dtype == np.float32
        np.testing.assert_array_equal(level, reference_level(canvas, grid, size, (0.5, 1.0, 2.0)))


def test_anchors_beyond_the_border_stay():
    (level,) = anchors.pyramid_anchors((64, 64), ((2, 2),), (512.0,))
    assert level.shape == (12, 4)
    assert level.min() < -300
    assert level.max() > 300


def test_the_standard_pyramid_has_the_known_number_of_anchors():
    grids = tuple((800 // stride, 1088 // stride) for stride in (4, 8, 16, 32, 64))
    pyramid = anchors.pyramid_anchors((800, 1088), grids, tuple(TORCHVISION))
    assert [len(level) for level in pyramid] == [163200, 40800, 10200, 2550, 612]
    # The last cell of p2: x = 271 * 4, y = 199 * 4.
    np.testing.assert_array_equal(pyramid[0][-2], [1084 - 16, 796 - 16, 1084 + 16, 796 + 16])


def test_grids_and_sizes_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        anchors.pyramid_anchors((64, 64), ((2, 2), (1, 1)), (32.0,))


def test_octaves_around_the_centres_of_cells():
    """SpineNet: sides of 24, 30.2 and 38.1, ratios 1, 2 and 1/2, at (i + 1/2) strides."""
    (level,) = anchors.centred_octave_anchors((8,), ((2, 3),), (24.0,))
    assert level.shape == (2 * 3 * 9, 4)
    boxes = level.reshape(2, 3, 3, 3, 4)
    np.testing.assert_allclose(boxes[1, 2, 0, 0], [20 - 12, 12 - 12, 20 + 12, 12 + 12])
    sides = boxes[..., 2:] - boxes[..., :2]
    np.testing.assert_allclose(sides[0, 0, :, 0, 0], 24 * 2 ** (np.arange(3) / 3), rtol=1e-6)
    np.testing.assert_allclose(sides[0, 0, 0, 1], [24 * 2**0.5, 24 / 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(sides[0, 0, 0, 2], [24 / 2**0.5, 24 * 2**0.5], rtol=1e-6)


def test_octaves_of_torchvision_are_whole_pixels():
    (level,) = anchors.octave_anchors((64, 96), ((8, 12),), (32.0,))
    boxes = level.reshape(8, 12, 3, 3, 4)
    np.testing.assert_array_equal(boxes[0, 0, 1], [[-s, -s, s, s] for s in (16, 20, 25)])
    assert (boxes == np.round(boxes)).all()
