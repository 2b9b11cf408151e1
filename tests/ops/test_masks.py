"""Mask targets against a RoIAlign on whole bitmaps, written as loops."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.ops.masks import targets

SIDE = 56


def bilinear(bitmap, y, x):
    """Interpolate between the cell centres of a bitmap that is 0 beyond its border."""
    total = 0.0
    y0, x0 = math.floor(y), math.floor(x)
    for row, column in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
        if 0 <= row < bitmap.shape[0] and 0 <= column < bitmap.shape[1]:
            total += bitmap[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def roi_align(bitmap, roi, mask_size, aligned):
    """Pool an RoI with adaptive sampling, as Mask R-CNN makes its targets."""
    shift = 0.5 if aligned else 0.0
    x0, y0, x1, y1 = (float(v) - shift for v in roi)
    height, width = (y1 - y0, x1 - x0) if aligned else (max(y1 - y0, 1), max(x1 - x0, 1))
    rows, columns = math.ceil(height / mask_size), math.ceil(width / mask_size)
    target = np.zeros((mask_size, mask_size))
    for i in range(mask_size):
        for j in range(mask_size):
            values = [
                bilinear(
                    bitmap,
                    y0 + (i + (a + 0.5) / rows) * height / mask_size,
                    x0 + (j + (b + 0.5) / columns) * width / mask_size,
                )
                for a in range(rows)
                for b in range(columns)
            ]
            target[i, j] = np.mean(values)
    return target


@pytest.mark.parametrize("aligned", [False, True])
def test_targets_equal_roi_align_of_the_bitmap(aligned):
    rng = np.random.default_rng(0)
    crops = (rng.uniform(0, 1, (2, SIDE, SIDE)) > 0.5).astype(np.uint8)
    truth = np.array([[20, 30, 20 + SIDE, 30 + SIDE], [70, 10, 70 + SIDE, 10 + SIDE]], np.float32)
    bitmaps = np.zeros((2, 120, 160))
    bitmaps[0, 30 : 30 + SIDE, 20 : 20 + SIDE] = crops[0]
    bitmaps[1, 10 : 10 + SIDE, 70 : 70 + SIDE] = crops[1]
    rois = np.array(
        [[20, 30, 76, 86], [12.3, 25.1, 70.9, 90.4], [60.5, 5.2, 140.3, 70.7], [90, 30, 94, 33]],
        np.float32,
    )
    matched = np.array([0, 0, 1, 1], np.int32)
    roi_targets = targets(*map(jnp.asarray, (crops, truth, rois, matched)), 14, aligned)
    for target, roi, index in zip(roi_targets, rois, matched, strict=True):
        np.testing.assert_allclose(target, roi_align(bitmaps[index], roi, 14, aligned), atol=1e-4)


def test_objects_larger_than_their_cells_keep_their_shape():
    """A square that fills the left half of its box, seen by an RoI twice as wide as the box."""
    crop = np.zeros((1, 8, 8), np.uint8)
    crop[:, :, :4] = 1
    truth = np.array([[100, 100, 300, 300]], np.float32)
    rois = np.array([[100, 100, 500, 300]], np.float32)
    target = np.asarray(
        targets(*map(jnp.asarray, (crop, truth, rois, np.zeros(1, np.int32))), 16, aligned=True)
    )[0]
    assert (target[2:-2, 1:3] > 0.99).all()
    assert (target[:, 6:] < 0.01).all()
