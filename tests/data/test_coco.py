"""COCO folders: real photographs where available, generated files for every possible error."""

import json

import cv2
import numpy as np
import PIL.Image
import pytest

from crnas_jax.data.coco import CocoSource
from crnas_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two images, category ids 7 and 3, one crowd, one box partly and one wholly outside."""
    for name, shape in (("a.png", (20, 30, 3)), ("b.png", (40, 10, 3))):
        image = np.zeros(shape, np.uint8)
        image[..., 2] = 200  # OpenCV writes BGR: this is red
        cv2.imwrite(str(tmp_path / name), image)
    coco = {
        "images": [
            {"id": 9, "file_name": "a.png", "height": 20, "width": 30},
            {"id": 4, "file_name": "b.png", "height": 40, "width": 10},
        ],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 7,
                "bbox": [1, 2, 5, 6],
                "area": 11.5,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 9,
                "category_id": 3,
                "bbox": [25, 2, 10, 6],
                "area": 60,
                "iscrowd": 1,
            },
            {
                "id": 3,
                "image_id": 9,
                "category_id": 3,
                "bbox": [40, 2, 10, 6],
                "area": 60,
                "iscrowd": 0,
            },
        ],
    }
    (tmp_path / "x.json").write_text(json.dumps(coco))
    return tmp_path


def test_records(folder):
    source = CocoSource(folder, folder / "x.json")
    assert (source.class_names, source.category_ids) == (["three", "seven"], [3, 7])
    assert source.image_ids.tolist() == [4, 9]
    assert source.sizes.tolist() == [[40, 10], [20, 30]]
    assert source.num_skipped_boxes == 1
    empty, record = source[0], source[1]
    assert empty["boxes"].shape == (0, 4)
    assert record["image"][0, 0].tolist() == [200, 0, 0]
    assert record["boxes"].tolist() == [[1, 2, 6, 8], [25, 2, 30, 8]]
    assert record["labels"].tolist() == [2, 1]
    assert record["area"].tolist() == [11.5, 60]
    assert record["crowd"].tolist() == [False, True]


def _rewrite(folder, change):
    coco = json.loads((folder / "x.json").read_text())
    change(coco)
    (folder / "x.json").write_text(json.dumps(coco))


def test_boxes_without_size_or_outside_their_image(folder):
    """They are left out everywhere, in evaluation too, and counted."""
    _rewrite(folder, lambda coco: coco["annotations"][0].update(bbox=[1, 2, 0, 6]))
    source = CocoSource(folder, folder / "x.json")
    assert (source.num_skipped_boxes, source.num_clipped_boxes) == (2, 1)
    assert [annotation["id"] for annotation in source.coco["annotations"]] == [2]
    assert len(source[1]["boxes"]) == 1


def test_boxes_drawn_on_the_rotated_image(folder):
    """The size in the annotation file tells whether to apply the EXIF rotation."""
    rotated = PIL.Image.open(folder / "a.png").convert("RGB")
    exif = rotated.getexif()
    exif[0x0112] = 6
    rotated.save(folder / "a.png", exif=exif)
    stored = CocoSource(folder, folder / "x.json")
    stored.check_images()
    assert stored[1]["image"].shape == (20, 30, 3)
    _rewrite(folder, lambda coco: coco["images"][0].update(height=30, width=20))
    applied = CocoSource(folder, folder / "x.json")
    applied.check_images()
    assert applied[1]["image"].shape == (30, 20, 3)


def test_missing_and_broken_files(folder):
    with pytest.raises(UserError, match=r"none.json"):
        CocoSource(folder, folder / "none.json")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:20])
    with pytest.raises(UserError, match=r"b.png: image: broken"):
        CocoSource(folder, folder / "x.json")[0]
    _rewrite(folder, lambda coco: coco["images"][0].update(height=21))
    with pytest.raises(UserError, match=r"a.png: size: 20 x 30"):
        CocoSource(folder, folder / "x.json")[1]
    (folder / "x.json").write_text("{")
    with pytest.raises(UserError, match="json"):
        CocoSource(folder, folder / "x.json")


def test_real_photographs(shared_data):
    source = CocoSource(shared_data / "bccd" / "images", shared_data / "bccd" / "train.json")
    assert (len(source), source.class_names) == (205, ["Platelets", "RBC", "WBC"])
    assert sum(len(source[index]["boxes"]) for index in range(len(source))) == 2804
    assert source[0]["image"].shape == (480, 640, 3)
