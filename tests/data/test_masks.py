"""Conversion of polygons and run-length codes to crops and back."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from crnas_jax.data import masks
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError


def _bitmap(segmentation, height, width):
    code = segmentation
    if isinstance(segmentation, list):
        code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(code["counts"], list):
        code = coco_mask.frPyObjects(code, height, width)
    return coco_mask.decode(code)


def test_crops_of_whole_pixels_are_the_bitmap():
    polygon = [30.5, 20.2, 90.1, 25.0, 70.7, 80.9, 35.2, 70.0]
    bitmap = _bitmap([polygon], 130, 160)
    box = (25, 15, 25 + 112, 15 + 112)
    np.testing.assert_array_equal(masks.crop([polygon], box, 112), bitmap[15:127, 25:137])
    inside = (28, 18, 28 + 64, 18 + 64)
    code = masks.encode(bitmap)
    np.testing.assert_array_equal(masks.crop(code, inside, 64), bitmap[18:82, 28:92])


def test_crops_of_real_objects_keep_their_shape(shared_data):
    """Pasted back into the image, a crop covers nearly the same pixels as the annotation."""
    content = json.loads((shared_data / "coco200" / "val.json").read_text())
    size_of = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    overlaps = []
    for annotation in content["annotations"][:200]:
        x, y, width, height = annotation["bbox"]
        if min(width, height) < 8:
            continue
        assert masks.validated(annotation["segmentation"], *size_of[annotation["image_id"]])
        box = np.array([x, y, x + width, y + height])
        crop = masks.crop(annotation["segmentation"], box, 112)
        pasted = masks.paste(crop, box, *size_of[annotation["image_id"]]) >= 0.5
        bitmap = _bitmap(annotation["segmentation"], *size_of[annotation["image_id"]]) > 0
        overlaps.append((pasted & bitmap).sum() / (pasted | bitmap).sum())
    assert len(overlaps) > 120
    assert np.mean(overlaps) > 0.93
    assert np.quantile(overlaps, 0.1) > 0.85


@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 1.0])
def test_encoding_preserves_masks(share):
    """Compressed codes are read as pycocotools writes them."""
    mask = np.random.default_rng(0).uniform(0, 1, (37, 53)) < share
    code = json.loads(json.dumps(masks.encode(mask)))
    np.testing.assert_array_equal(_bitmap(code, 37, 53), mask)
    assert masks.validated(code, 37, 53) == code
    assert masks.validated({**code, "counts": code["counts"][:-1]}, 37, 53) is None


def test_rows_hold_masks_and_mirror_them(shared_data):
    folder = shared_data / "coco200"
    source = CocoSource(folder / "images", folder / "train.json", with_masks=True)
    index = next(i for i in range(len(source)) if (~source[i]["crowd"]).sum() > 1)
    record, size = source[index], ImageSize(128, 160)
    portrait = bool(record["image"].shape[0] > record["image"].shape[1])
    rows = DetectionRows(size, 10, flip=True, mask_size=28)
    plain, mirrored = None, None
    for seed in range(20):
        row = rows(record, portrait, np.random.default_rng(seed))
        is_plain = np.allclose(row["boxes"][0], record["boxes"][0] * row["scale"][[1, 0, 1, 0]])
        plain, mirrored = (row, mirrored) if is_plain else (plain, row)
    np.testing.assert_array_equal(plain["masks"], mirrored["masks"][:, :, ::-1])
    assert plain["masks"].dtype == np.uint8
    assert plain["masks"].shape == (10, 28, 28)
    ignored = plain["crowd"] | ~plain["valid"]
    assert not plain["masks"][ignored].any()
    assert plain["masks"][~ignored].any((1, 2)).all()


@pytest.mark.parametrize(
    "faulty",
    [
        None,
        "x",
        [],
        [[1, 2, 3, 4]],
        [["a"] * 6],
        [[1, 1, 5, 1, 5, 5], [1, 2, 3, 4, 5]],
        [[1, 1, 5, 1, 1e9, 5]],
        [[1, 1, 5, 1, float("nan"), 5]],
        {"size": [10, 10]},
        {"size": [10, 10], "counts": []},
        {"size": [10, 10], "counts": [5, 10]},
        {"size": [10, 10], "counts": [150, -50]},
        {"size": [10, 10], "counts": "0"},
        {"size": [10, 10], "counts": "\u00e9"},
        {"size": [20, 5], "counts": [100]},
        {"size": [2000000000, 2000000000], "counts": [100]},
    ],
)
def test_invalid_masks_are_refused(tmp_path, faulty):
    assert masks.validated(faulty, 10, 10) is None
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**annotation, "segmentation": faulty}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    CocoSource(tmp_path, tmp_path / "a.json")
    with pytest.raises(UserError, match=r"annotations\[0\].segmentation: .* is no mask"):
        CocoSource(tmp_path, tmp_path / "a.json", with_masks=True)


def test_polygons_of_two_points_are_left_out():
    valid = [1, 1, 5, 1, 5, 5]
    assert masks.validated([[1, 2, 3, 4], valid], 10, 10) == [valid]
