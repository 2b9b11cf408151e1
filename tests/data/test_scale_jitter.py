"""Scale jitter: objects stay where they are in the picture, whatever is cropped or padded."""

import numpy as np
import pytest

from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError


def _record():
    """Return a picture of 80 x 120 pixels with a red and a green rectangle, and a third outside."""
    boxes = np.array([[10, 10, 40, 30], [70, 40, 110, 70], [118, 76, 120, 80]], np.float32)
    image = np.zeros((80, 120, 3), np.uint8)
    for channel, (x0, y0, x1, y1) in enumerate(boxes.astype(int)[:2]):
        image[y0:y1, x0:x1, channel] = 255
    polygons = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    polygons[1] = [70, 40, 110, 40, 110, 50, 80, 50, 80, 70, 70, 70]  # the second is an L
    image[50:70, 80:110, 1] = 0
    return {
        "image": image,
        "image_id": np.int64(3),
        "boxes": boxes,
        "labels": np.array([1, 2, 3], np.int32),
        "area": np.array([600, 1200, 8], np.float32),
        "crowd": np.array([False, False, True]),
        "segmentations": [[polygon] for polygon in polygons],
    }


@pytest.mark.parametrize("jitter", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0), (3.5, 3.5)])
@pytest.mark.parametrize("size", [ImageSize(96, 96), ImageSize(64, 128)])
def test_boxes_and_masks_follow_the_pixels(jitter, size):
    rows = DetectionRows(size, 4, flip=True, mask_size=16, scale_jitter=jitter)
    crops = set()
    for seed in range(12):
        row = rows(_record(), False, np.random.default_rng(seed))
        height, width = row["image_size"]
        assert row["image"].shape[:2] == size.canvas(portrait=False)
        assert (row["image"][height:] == 0).all()
        assert (row["image"][:, width:] == 0).all()
        crops.add(row["boxes"].tobytes())
        labels = row["labels"][row["valid"]]
        for channel in (0, 1):
            red = row["image"][..., channel].astype(float)
            entry = np.flatnonzero(labels == channel + 1)
            if not len(entry):
                assert (red > 200).sum() < 2 * max(height, width)  # less than a pixel is left
                continue
            x0, y0, x1, y1 = row["boxes"][entry[0]]
            assert 0 <= x0 < x1 <= width
            assert 0 <= y0 < y1 <= height
            if channel == 0:  # of an L the crop may leave a corner of the box that is empty
                down, across = np.nonzero(red > 127)
                found = [across.min(), down.min(), across.max() + 1, down.max() + 1]
                np.testing.assert_allclose(found, [x0, y0, x1, y1], atol=1.01)
            # The mask is that of the pixels inside the box that is left.
            inside = red[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] > 127
            assert abs(row["masks"][entry[0]].mean() - inside.mean()) < 0.2
            assert row["area"][entry[0]] == (600, 1200)[channel]
        assert row["crowd"].tolist() == (row["labels"] == 3).tolist()
    height, width = size.resized(80, 120)
    is_cropped = jitter[0] * height > 1.2 * size.min_size or jitter[0] * width > 1.2 * size.max_size
    assert len(crops) > 3 or not is_cropped  # crops lie at random places


def test_the_factor_is_drawn_from_the_range_and_the_rest_as_without_it():
    rows = DetectionRows(ImageSize(96, 96), 4, scale_jitter=(0.5, 2.0))
    scales = [rows(_record(), False, np.random.default_rng(s))["scale"][1] for s in range(200)]
    factors = np.array(scales) / (96 / 120)
    assert 0.5 <= factors.min() < 0.6
    assert 1.9 < factors.max() <= 2.0
    assert abs(factors.mean() - 1.25) < 0.1
    plain, one = (
        DetectionRows(ImageSize(96, 96), 4, scale_jitter=jitter)(
            _record(), False, np.random.default_rng(0)
        )
        for jitter in ((), (1.0, 1.0))
    )
    for name, values in plain.items():
        np.testing.assert_array_equal(values, one[name])


@pytest.mark.parametrize("jitter", [(2.0, 0.5), (0.5,), (0.01, 1.0), (1.0, 50.0)])
def test_other_ranges_are_refused(jitter):
    with pytest.raises(UserError, match="scale_jitter"):
        DetectionRows(ImageSize(96, 96), scale_jitter=jitter)


def test_of_what_a_crop_leaves_no_more_objects_are_drawn_than_there_is_room_for():
    rows = DetectionRows(ImageSize(96, 96), 1, mask_size=8, scale_jitter=(2.0, 2.0))
    for seed in range(12):
        row = rows(_record(), False, np.random.default_rng(seed))
        assert row["valid"].sum() <= 1
        assert not row["crowd"].any() or row["labels"][0] == 3
        (x0, y0, x1, y1), mask = row["boxes"][0], row["masks"][0]
        assert not row["valid"][0] or (x1 - x0 >= 1 and y1 - y0 >= 1)
        if row["labels"][0] == 1:  # the rectangle fills what is left of its box
            assert mask.mean() > 0.9
