"""The protocols of data sources, and that every source of the package follows them."""

import json
import typing

import cv2
import numpy as np
import pytest

from crnas_jax.data.classification import FolderSource, SyntheticClassification
from crnas_jax.data.coco import CocoSource
from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.voc import VocSource

_XML = (
    "<annotation><filename>a.jpg</filename><size><width>30</width><height>20</height></size>"
    "<object><name>cat</name><difficult>1</difficult><bndbox><xmin>2</xmin><ymin>3</ymin>"
    "<xmax>6</xmax><ymax>8</ymax></bndbox></object></annotation>"
)


def _coco(folder):
    cv2.imwrite(str(folder / "a.png"), np.zeros((20, 30, 3), np.uint8))
    annotation = {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 2, 5, 6], "iscrowd": 0}
    content = {
        "images": [{"id": 4, "file_name": "a.png", "height": 20, "width": 30}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [annotation],
    }
    (folder / "x.json").write_text(json.dumps(content))
    return CocoSource(folder, folder / "x.json"), ("coco",)


def _voc(folder):
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / "VOC2007" / name).mkdir(parents=True)
    (folder / "VOC2007/ImageSets/Main/train.txt").write_text("a\n")
    (folder / "VOC2007/Annotations/a.xml").write_text(_XML)
    cv2.imwrite(str(folder / "VOC2007/JPEGImages/a.jpg"), np.zeros((20, 30, 3), np.uint8))
    return VocSource(folder, "VOC2007/train"), ("coco", "voc")


def _synthetic(folder):
    return SyntheticSource(3, 64), ("coco",)


@pytest.mark.parametrize("make", [_coco, _voc, _synthetic])
def test_detection_sources_follow_the_protocol(tmp_path, make):
    source, metrics = make(tmp_path)
    assert isinstance(source, DetectionSource)
    for name, kind in typing.get_type_hints(DetectionSource).items():
        assert isinstance(getattr(source, name), typing.get_origin(kind) or kind), name
    assert source.metrics == metrics
    assert len(source) == len(source.image_ids) == len(source.sizes) == len(source.image_names)
    assert len(source.category_ids) == len(source.class_names)
    assert (source.image_ids.dtype, source.sizes.dtype) == (np.int64, np.int32)
    names = [image.name for image in source.stored_images]
    assert names == ([] if make is _synthetic else source.image_names)
    source.check_images()
    record = source[0]
    objects = len(record["boxes"])
    shapes = {
        "image": ((*source.sizes[0], 3), np.uint8),
        "image_id": ((), np.int64),
        "boxes": ((objects, 4), np.float32),
        "labels": ((objects,), np.int32),
        "area": ((objects,), np.float32),
        "crowd": ((objects,), np.bool_),
    }
    assert {name: (value.shape, value.dtype) for name, value in record.items()} == shapes
    assert record["image_id"] == source.image_ids[0]


@pytest.mark.parametrize("name", ["folder", "synthetic"])
def test_classification_sources_follow_the_protocol(tmp_path, name):
    source = SyntheticClassification(3, 32)
    if name == "folder":
        (tmp_path / "cat").mkdir()
        cv2.imwrite(str(tmp_path / "cat" / "1.png"), np.zeros((4, 5, 3), np.uint8))
        source = FolderSource(tmp_path)
    assert isinstance(source, ClassificationSource)
    assert (source.sizes.shape, source.sizes.dtype) == ((len(source), 2), np.int32)
    assert isinstance(source.digest, str)
    record = source[0]
    assert (record["image"].ndim, record["image"].dtype) == (3, np.uint8)
    assert 0 <= record["label"] < len(source.class_names)
    assert record["image_id"].dtype == np.int64


def test_incomplete_sources_do_not_follow_the_protocol():
    class Incomplete:
        class_names, sizes = (), np.ones((0, 2), np.int32)

        def __len__(self):
            return 0

        def __getitem__(self, index):
            raise IndexError(index)

    assert not isinstance(Incomplete(), DetectionSource)
    assert not isinstance(Incomplete(), ClassificationSource)
