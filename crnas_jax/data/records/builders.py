"""Data sets as records: what stands in the records of COCO's, VOC's and labelled images.

Features beside `record_features.ANNOTATIONS` are those of TFDS's own data sets, for other readers.
"""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from crnas_jax.data.coco import CocoSource
from crnas_jax.data.records import features as record_features
from crnas_jax.data.records.features import ClassificationFeatures, DetectionFeatures
from crnas_jax.data.records.writer import DataSet, Split
from crnas_jax.data.stored import ImageFile
from crnas_jax.errors import UserError

# Bytes of a record beside its image, roughly.
_BESIDE_IMAGE = 2000


def detection_data_set(name: str, sources: Mapping[str, CocoSource]) -> DataSet:
    """Describe a detection data set; all splits have the same classes.

    Args:
      name: name of its files.
      sources: splits in COCO's or VOC's layout, by name.

    Raises:
      UserError: the classes differ.
    """
    first = next(iter(sources.values()))
    for split, source in sources.items():
        require_class_names(source.place, source.class_names)
        if (source.category_ids, source.class_names) != (first.category_ids, first.class_names):
            remedy = "give all splits the same categories"
            raise UserError(source.place, "categories", f"{split} has others", remedy)
    objects = {
        "id": np.int64,
        "area": np.float32,
        "bbox": tfds.features.BBoxFeature(),
        "label": tfds.features.ClassLabel(names=first.class_names),
        "is_crowd": np.bool_,
    }
    if "difficult" in first.ignore_fields:
        objects["is_difficult"] = np.bool_
    features = tfds.features.FeaturesDict(
        {
            record_features.IMAGE: tfds.features.Image(),
            record_features.FILE_NAMES[0]: tfds.features.Text(),
            record_features.IMAGE_ID: np.int64,
            record_features.HEIGHT: np.int64,
            record_features.WIDTH: np.int64,
            record_features.ANNOTATIONS: tfds.features.Text(),
            record_features.CATEGORY_IDS: tfds.features.Sequence(np.int64),
            "objects": tfds.features.Sequence(objects),
        }
    )
    splits = {split: _detection_split(features, source) for split, source in sources.items()}
    return DataSet(name, features, DetectionFeatures(features, name), splits)


def _detection_split(features, source):
    annotations = defaultdict(list)
    for number, entry in enumerate(source.annotated, 1):
        kept = {**entry, "id": entry["id"] if _is_id(entry.get("id")) else number}
        annotations[kept.pop("image_id")].append(kept)
    label_of = {category: label for label, category in enumerate(source.category_ids)}
    has_difficult = "difficult" in source.ignore_fields
    names = [entry["file_name"] for entry in sorted(source.coco["images"], key=_id)]
    rows = _order([image.path for image in source.stored_images])

    def example(position):
        row = rows[position]
        height, width = source.sizes[row].tolist()
        image_id = int(source.image_ids[row])
        objects = []
        for entry in annotations[image_id]:
            x, y, w, h = entry["bbox"]
            objects.append(
                {
                    "id": entry["id"],
                    "area": entry.get("area", max(w, 0) * max(h, 0)),
                    "bbox": _normalised(x, y, x + w, y + h, height, width),
                    "label": label_of[entry["category_id"]],
                    "is_crowd": bool(entry.get("iscrowd")),
                    **({"is_difficult": bool(entry["difficult"])} if has_difficult else {}),
                }
            )
        return {
            record_features.FILE_NAMES[0]: names[row],
            record_features.IMAGE_ID: image_id,
            record_features.HEIGHT: height,
            record_features.WIDTH: width,
            record_features.ANNOTATIONS: json.dumps(annotations[image_id]),
            record_features.CATEGORY_IDS: source.category_ids,
            "objects": objects,
        }

    return _split(features, [source.stored_images[row] for row in rows], example, source.digest)


def _id(entry):
    return entry["id"]


def _is_id(value):
    return type(value) is int and -(2**63) <= value < 2**63


def require_class_names(place, class_names: Sequence[str]) -> None:
    """Raise UserError unless TFDS's lists of names can hold the names of classes, one a line."""
    for name in class_names:
        is_line = name == name.strip() and len(name.splitlines()) == 1
        if not is_line or name.encode(errors="replace").decode() != name:
            problem = f"a class is called {name[:40]!r}, which a list of names cannot hold"
            raise UserError(place, "classes", problem, "rename it")
    if len(set(class_names)) < len(class_names):
        raise UserError(place, "classes", "a name comes twice", "rename one")


def _order(paths):
    """Return positions in the order in which archives are read fastest; ids' order otherwise."""
    return sorted(range(len(paths)), key=lambda row: getattr(paths[row], "position", 0))


def _normalised(x0, y0, x1, y1, height, width):
    """Return the part of a box inside its image as TFDS holds it; no size where it is outside."""
    x0, x1 = (min(max(x / width, 0.0), 1.0) for x in (x0, max(x0, x1)))
    y0, y1 = (min(max(y / height, 0.0), 1.0) for y in (y0, max(y0, y1)))
    return tfds.features.BBox(ymin=y0, xmin=x0, ymax=y1, xmax=x1)


def classification_data_set(
    name: str, class_names: Sequence[str], files: Mapping[str, Sequence[tuple]]
) -> DataSet:
    """Describe a classification data set.

    Args:
      name: name of its files.
      class_names: names of the labels 0..C-1.
      files: (path, label) of the images in the order of their ids, by split.
    """
    require_class_names(name, class_names)
    features = tfds.features.FeaturesDict(
        {
            record_features.IMAGE: tfds.features.Image(),
            record_features.FILE_NAMES[0]: tfds.features.Text(),
            record_features.IMAGE_ID: np.int64,
            "label": tfds.features.ClassLabel(names=list(class_names)),
        }
    )
    splits = {split: _classification_split(features, entries) for split, entries in files.items()}
    return DataSet(name, features, ClassificationFeatures(features, name), splits)


def _classification_split(features, entries):
    rows = _order([path for path, _ in entries])

    def example(position):
        path, label = entries[rows[position]]
        return {
            record_features.FILE_NAMES[0]: path.name,
            record_features.IMAGE_ID: rows[position],
            "label": label,
        }

    names = "\n".join(f"{path.parent.name}/{path.name} {label}" for path, label in entries)
    images = [ImageFile(entries[row][0]) for row in rows]
    return _split(features, images, example, hashlib.sha256(names.encode()).hexdigest())


def _split(
    features: tfds.features.FeaturesDict,
    images: Sequence[ImageFile],
    example: Callable[[int], dict],
    digest: str,
) -> Split:
    """Return a split whose records hold images and what `example` returns of them.

    Args:
      features: features of the records.
      images: the images, in the order of the records.
      example: function from a position to the record's features, without the image.
      digest: text that changes with the annotations.
    """
    serializer = ExampleSerializer(features.get_serialized_info())

    def records(start: int, stop: int) -> Iterator[bytes]:
        for position in range(start, stop):
            image = {record_features.IMAGE: io.BytesIO(images[position].content())}
            encoded = features.encode_example({**image, **example(position)})
            # Otherwise each process orders the features in its own way.
            yield serializer.get_tf_example(encoded).SerializeToString(deterministic=True)

    num_bytes = sum(image.num_bytes + _BESIDE_IMAGE for image in images)
    return Split(len(images), num_bytes, records, lambda row: images[row].name, digest)
