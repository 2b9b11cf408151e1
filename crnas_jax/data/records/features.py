"""What the features of a TFDS folder mean: from records to entries of its index.

Own data sets (`data.records.builders`) keep in `ANNOTATIONS` what was annotated, number by number;
TFDS's usual features beside it are for other readers. Data sets of others are read by those.
"""

import functools
import json
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from crnas_jax.data import masks
from crnas_jax.data.coco import category_entries
from crnas_jax.data.records.folder import FEATURES, RecordFolder
from crnas_jax.data.records.index import FLAGS, NO_ID, Entry
from crnas_jax.errors import UserError

IMAGE, IMAGE_ID, HEIGHT, WIDTH = "image", "image/id", "image/height", "image/width"
# COCO's annotations of the image as JSON, without `image_id`.
ANNOTATIONS = "image/annotations"
# Ids of all categories, in the order of the labels.
CATEGORY_IDS = "categories/id"
FILE_NAMES = ("image/filename", "file_name", "filename")
_LABELLED = "give a data set with image and label among its features"
_REMEDY = "give a data set with image and objects (bbox, label) among its features"

Example = dict[str, Any]
BBoxFormat = tfds.core.features.bounding_boxes_utils.BBoxFormat


class Features:
    """What detection and classification have in common.

    Attributes:
      skip: TFDS's tree of features that stay encoded.
    """

    def __init__(self, features: tfds.features.FeaturesDict, place, stock_name: str = ""):
        """Look for what is needed among the features.

        Args:
          features: the features.
          place: what names them in messages.
          stock_name: name of the builder of TFDS itself that prepared them; "" for another.

        Raises:
          UserError: something is missing, or the format of boxes is not known.
        """
        self._features, self._file, self._stock_name = features, place, stock_name
        self.skip = {IMAGE: tfds.decode.SkipDecoding()}
        if not isinstance(_feature(features, IMAGE), tfds.features.Image):
            raise self._fault(IMAGE, "missing, or no image", _REMEDY)
        self._name = next((name for name in FILE_NAMES if name in self._features), None)

    @classmethod
    def of(cls, folder: RecordFolder) -> "Features":
        """Read what the features of a folder mean."""
        return cls(folder.info.features, folder.path / FEATURES, folder.stock_name)

    def _fault(self, field, problem, remedy):
        return UserError(self._file, field, problem, remedy)

    def _class_names(self, label, place):
        if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
            remedy = _LABELLED if place == "label" else _REMEDY
            raise self._fault(place, "missing, or no ClassLabel", remedy)
        return [str(name) for name in label.names]

    def _head(self, example: Example) -> dict:
        """Return the fields of an entry that both kinds have."""
        image_id, name = example.get(IMAGE_ID, NO_ID), example.get(self._name, b"")
        if isinstance(image_id, bytes):
            image_id, name = NO_ID, image_id
        if image_id != int(image_id) or not NO_ID <= image_id < 2**63:
            raise ValueError(f"{IMAGE_ID} {image_id} is no whole number below 2**63")
        return {
            "content": example[IMAGE],
            "image_id": int(image_id),
            "name": name.decode(errors="replace"),
        }


class ClassificationFeatures(Features):
    """Labelled images.

    Attributes:
      section: section of the config that names such data.
      class_names: names of the labels 0..C-1.
    """

    section = "pretrain.data"

    def __init__(self, features: tfds.features.FeaturesDict, place, stock_name: str = ""):
        """Look for the label; see `Features`."""
        super().__init__(features, place, stock_name)
        self.class_names = self._class_names(_feature(features, "label"), "label")

    def description(self, example: Example) -> dict:
        """Return what of an index holds for all records, of which `example` is one."""
        del example
        return {}

    def entry(self, example: Example) -> Entry:
        """Return a record as an entry of the index."""
        return Entry(**self._head(example), label=int(example["label"]))


class DetectionFeatures(Features):
    """Images with objects.

    Attributes:
      section: section of the config that names such data.
      class_names: names of the labels 1..C.
      flags: those of `FLAGS` that objects may have.
      has_masks: whether there are masks.
      is_exact: whether boxes, areas and ids are those that were annotated.
      is_voc: whether the metrics are VOC's too.
      has_normalised_boxes: whether boxes are fractions of the image.
      notes: lines for the plan.
    """

    section = "data"

    def __init__(self, features: tfds.features.FeaturesDict, place, stock_name: str = ""):
        """Look for the objects; see `Features`."""
        super().__init__(features, place, stock_name)
        fields = getattr(_feature(features, "objects"), "feature", None)
        if not isinstance(fields, tfds.features.FeaturesDict):
            raise self._fault("objects", "missing, or no sequence of objects", _REMEDY)
        self.class_names = self._class_names(_feature(fields, "label"), "objects/label")
        self.is_voc = "is_difficult" in fields
        self.is_exact = ANNOTATIONS in self._features and CATEGORY_IDS in self._features
        self.has_normalised_boxes = False
        self.notes, self._mask = [], None
        if self.is_exact:
            self.flags, self.has_masks = FLAGS if self.is_voc else FLAGS[:2], True
            self._objects = self._exact_objects
            return
        self.flags = ("iscrowd", *(("difficult",) if self.is_voc else ()))
        self._mask = next((n for n in ("segmentation", "mask", "masks") if n in fields), None)
        self.has_masks = self._mask is not None
        self._format = self._bbox_format(_feature(fields, "bbox"))
        self.has_normalised_boxes = self._format.value.startswith("REL_")
        # TFDS's own builder normalises VOC's pixels as they are: 1-based, both ends included.
        self._one_based = stock_name == "voc"
        self.notes += self._missing(fields)
        self._objects = self._stock_objects

    def _bbox_format(self, feature):
        if not isinstance(feature, tfds.features.BBoxFeature):
            raise self._fault("objects/bbox", "missing, or no BBoxFeature", _REMEDY)
        if feature.bbox_format is not None:
            return BBoxFormat(feature.bbox_format)
        if self._stock_name:  # prepared before formats had names
            return BBoxFormat.REL_YXYX
        raise self._fault(
            "objects/bbox",
            "it has no bboxFormat",
            f"add one of {', '.join(kind.value for kind in BBoxFormat)} there",
        )

    def _missing(self, fields):
        """Say what is derived, because the data set lacks it."""
        if "area" not in fields:
            yield "objects have no area: that of their boxes is used"
        elif np.issubdtype(fields["area"].np_dtype, np.integer):
            yield "areas are whole numbers in these records: AP by size may differ a little"
        if "is_crowd" not in fields:
            yield "objects have no is_crowd: none is taken for a crowd"
        if self._one_based:
            yield "TFDS's own VOC: boxes are read as VOC's pixels, which count from 1"

    def _category_ids(self, example):
        if self.is_exact:
            return [int(category) for category in example[CATEGORY_IDS]]
        return list(range(1, len(self.class_names) + 1))

    def description(self, example: Example) -> dict:
        """Return what of an index holds for all records, of which `example` is one."""
        categories = category_entries(self._category_ids(example), self.class_names)
        return {"categories": categories, "notes": self.notes}

    def entry(self, example: Example) -> Entry:
        """Return a record as an entry of the index."""
        size = (int(example[HEIGHT]), int(example[WIDTH])) if self.is_exact else None
        objects = functools.partial(self._objects, example)
        return Entry(**self._head(example), size=size, objects=objects)

    def segmentations(self, example: Example) -> list:
        """Return the masks of a record's objects, each COCO's segmentation or None."""
        if self.is_exact:
            return [entry.get("segmentation") for entry in json.loads(example[ANNOTATIONS])]
        return [_segmentation(value) for value in example["objects"][self._mask]]

    def _exact_objects(self, example, height, width):
        del height, width
        label_of = {id_: label for label, id_ in enumerate(self._category_ids(example), 1)}
        for entry in json.loads(example[ANNOTATIONS]):
            x, y, w, h = map(float, entry["bbox"])
            yield (
                int(entry["id"]),
                label_of[entry["category_id"]],
                (x, y, w, h),
                float(entry.get("area", w * h)),
                [bool(entry.get(flag)) for flag in FLAGS],
                entry.get("segmentation"),
            )

    def _stock_objects(self, example, height, width):
        fields = example["objects"]
        boxes = np.array(fields["bbox"], np.float64).reshape(-1, 4)
        boxes = self._pixels(boxes, height, width).tolist()
        num_objects = len(boxes)
        segmentations = self.segmentations(example) if self.has_masks else [None] * num_objects
        for row in range(num_objects):
            _, _, w, h = boxes[row]
            marks = {
                "iscrowd": bool(fields["is_crowd"][row]) if "is_crowd" in fields else False,
                "difficult": bool(fields["is_difficult"][row]) if self.is_voc else False,
            }
            yield (
                int(fields["id"][row]) if "id" in fields else row + 1,
                int(fields["label"][row]) + 1,
                boxes[row],
                float(fields["area"][row]) if "area" in fields else max(w, 0.0) * max(h, 0.0),
                [marks.get(flag, False) for flag in FLAGS],
                segmentations[row],
            )

    def _pixels(self, boxes, height, width):
        """Return boxes in the data set's format as x, y, width and height in pixels."""
        kind = self._format.value.removeprefix("REL_")
        if kind == "YXYX":
            boxes = boxes[:, [1, 0, 3, 2]]
        if self.has_normalised_boxes:
            boxes = boxes * [width, height, width, height]
        if kind == "XYWH":
            return boxes
        x0, y0, x1, y1 = boxes.T
        first = 1 if self._one_based else 0
        return np.stack([x0 - first, y0 - first, x1 - x0 + first, y1 - y0 + first], axis=1)


def _feature(features, name):
    return dict(features.items()).get(name)  # FeaturesDict has no `get`


def _segmentation(value):
    """Return COCO's segmentation of a mask: text with JSON, or an image that is not 0."""
    if isinstance(value, bytes):
        return json.loads(value)
    value = np.asarray(value)
    return masks.encode(value.reshape(value.shape[:2]) > 0) if value.ndim >= 2 else None
