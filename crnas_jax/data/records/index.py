"""The index of a split in records: what a run asks of images and objects before it reads any.

It is a file of plain arrays. Own data sets (`data.records.builders`) have it beside their shards;
those of others are indexed once.
"""

import dataclasses
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from google.protobuf.message import DecodeError

from crnas_jax.data import images, masks
from crnas_jax.data.objects import MAX_AREA, Objects
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import replacing, require_regular

FORMAT = 1
# Fields of annotations that mark an object; a data set has some of them.
FLAGS = ("iscrowd", "ignore", "difficult")
NO_ID = -(2**63)


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """What is known of the records of a split, in their order.

    Attributes:
      description: JSON object: what the records are, so that an index of others is told apart,
        and what of it is the same for all images.
      image_id: ids, int64 [images]; `NO_ID` where records have none.
      name: names of the image files, UTF-8, bytes [images].
      size: heights and widths that the annotations belong to, pixels, int32 [images, 2].
      stored_size: heights and widths of the encoded images, int32 [images, 2].
      orientation: EXIF orientations, uint8 [images].
      has_16_bits: whether images have samples of 16 bits, bool [images].
      num_bytes: lengths of the encoded images, int64 [images].
      sha256: digests of the encoded images, uint8 [images, 32].
      label: classes 0..C-1 of a classification data set, int32 [images]; -1 in detection.
      object_image: positions of the objects' images, int32 [objects].
      object_id: ids of the objects, int64 [objects].
      object_label: classes 1..C, int32 [objects].
      bbox: x, y, width and height in pixels, float64 [objects, 4].
      area: areas in square pixels, float64 [objects].
      flags: the `FLAGS` of objects, uint8 [objects, 3].
      has_mask: whether objects have a valid mask, bool [objects].
    """

    description: dict
    image_id: np.ndarray
    name: np.ndarray
    size: np.ndarray
    stored_size: np.ndarray
    orientation: np.ndarray
    has_16_bits: np.ndarray
    num_bytes: np.ndarray
    sha256: np.ndarray
    label: np.ndarray
    object_image: np.ndarray
    object_id: np.ndarray
    object_label: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    flags: np.ndarray
    has_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def objects(self) -> Objects:
        """The objects as columns, ignored where one of their flags but `ignore` is set."""
        crowd = (self.flags[:, [FLAGS.index("iscrowd"), FLAGS.index("difficult")]] > 0).any(1)
        return Objects(self.object_image, self.object_label, self.bbox, self.area, crowd)

    def select(self, rows: np.ndarray) -> "RecordIndex":
        """Return the index of some images, at the given positions and in that order."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        place = np.full(len(self), -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        kept = np.flatnonzero(place[self.object_image] >= 0)
        kept = kept[np.argsort(place[self.object_image[kept]], kind="stable")]
        columns = {
            name: getattr(self, name)[kept if name in _OF_OBJECTS else rows] for name in _COLUMNS
        }
        columns["object_image"] = place[columns["object_image"]]
        return RecordIndex(self.description, **columns)


_COLUMNS = {
    "image_id": ((), np.int64),
    "name": ((), np.bytes_),
    "size": ((2,), np.int32),
    "stored_size": ((2,), np.int32),
    "orientation": ((), np.uint8),
    "has_16_bits": ((), np.bool_),
    "num_bytes": ((), np.int64),
    "sha256": ((32,), np.uint8),
    "label": ((), np.int32),
    "object_image": ((), np.int32),
    "object_id": ((), np.int64),
    "object_label": ((), np.int32),
    "bbox": ((4,), np.float64),
    "area": ((), np.float64),
    "flags": ((3,), np.uint8),
    "has_mask": ((), np.bool_),
}
_OF_OBJECTS = ("object_image", "object_id", "object_label", "bbox", "area", "flags", "has_mask")
# What features that are not as announced raise.
_UNREADABLE = (
    *(AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError),
    DecodeError,
)
_ANEW = "correct it, and prepare the records anew"
# Longest name of a file, in bytes.
_MAX_NAME = 255


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record, read for its index.

    Attributes:
      content: the encoded image.
      image_id: its id; `NO_ID` where the record has none.
      name: name of its file; "" where the record has none.
      size: height and width that its annotations belong to; None for those of the image as stored.
      label: class of a classification data set, counted from 0; -1 in detection.
      objects: tuples (id, class 1..C, bbox, area, flags in the order of `FLAGS`, segmentation) from
        the height and width of the image as stored; `bbox` is x, y, width and height in pixels.
    """

    content: bytes
    image_id: int = NO_ID
    name: str = ""
    size: tuple[int, int] | None = None
    label: int = -1
    objects: Callable[[int, int], Iterable[tuple]] = lambda height, width: ()


def make_index(
    num_records: int,
    read: Callable[[int], Entry],
    place: Callable[[int], str],
    description: dict,
    num_classes: int,
    max_pixels: int,
) -> RecordIndex:
    """Read all records of a split, or of a part of it, once.

    Args:
      num_records: number of records.
      read: function from a position to the record's entry.
      place: function from a position to what names the record in messages.
      description: see `RecordIndex`.
      num_classes: number of classes.
      max_pixels: pixels of the largest image that is decoded.

    Raises:
      UserError: an image is broken, or an object cannot be used; the record is named.
    """
    rows: dict[str, list] = {name: [] for name in _COLUMNS}
    for position in range(num_records):
        try:
            entry = read(position)
            header = images.check_content(place(position), entry.content, max_pixels)
            objects = list(entry.objects(*header.stored_size))
        except _UNREADABLE as error:
            problem = f"{type(error).__name__}: {str(error)[:100]}"
            raise UserError(place(position), "features", problem, _ANEW) from error
        size = entry.size or header.stored_size
        if size not in (header.stored_size, header.shown_size):
            problem = f"{header.height} x {header.width} pixels, its annotations say {size}"
            raise UserError(place(position), "size", problem, "correct height and width there")
        for object_id, label, bbox, area, flags, segmentation in objects:
            problem = _problem(label, bbox, area, num_classes)
            if problem:
                raise UserError(place(position), "objects", problem, _ANEW)
            has_mask = segmentation is not None and masks.validated(segmentation, *size) is not None
            values = (position, object_id, label, bbox, area, flags, has_mask)
            for name, value in zip(_OF_OBJECTS, values, strict=True):
                rows[name].append(value)
        of_image = {
            "image_id": entry.image_id,
            "name": entry.name.encode()[:_MAX_NAME],
            "size": size,
            "stored_size": header.stored_size,
            "orientation": header.orientation,
            "has_16_bits": header.has_16_bits,
            "num_bytes": len(entry.content),
            "sha256": np.frombuffer(hashlib.sha256(entry.content).digest(), np.uint8),
            "label": entry.label,
        }
        for name, value in of_image.items():
            rows[name].append(value)
    return RecordIndex(description, **{name: _column(name, rows[name]) for name in _COLUMNS})


def _problem(label, bbox, area, num_classes):
    """Say what is wrong with an object, "" if it can be used."""
    if not 1 <= label <= num_classes:
        return f"label {label - 1} of {num_classes} classes"
    if not all(np.isfinite(value) and abs(value) < 1e12 for value in bbox):
        return f"bbox {list(map(float, bbox))}"
    return "" if 0 <= area < MAX_AREA else f"area {area}"


def _column(name, values):
    shape, dtype = _COLUMNS[name]
    return np.array(values, dtype).reshape(-1, *shape)


def join(parts: Sequence[RecordIndex], description: dict) -> RecordIndex:
    """Return the index of records that follow each other."""
    if len(parts) == 1:
        return dataclasses.replace(parts[0], description=description)
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    starts = np.cumsum([0, *map(len, parts)])[:-1].astype(np.int32)
    columns["object_image"] = np.concatenate(
        [part.object_image + start for part, start in zip(parts, starts, strict=True)]
    )
    return RecordIndex(description, **columns)


def write_index(path: pathlib.Path, index: RecordIndex) -> None:
    """Write an index whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    columns = {name: getattr(index, name) for name in _COLUMNS}
    description = json.dumps({"format": FORMAT, **index.description}).encode()
    content = io.BytesIO()
    np.savez(content, description=np.frombuffer(description, np.uint8), **columns)
    with replacing(path) as file:
        file.write(content.getbuffer())


def read_index(path: pathlib.Path, remedy: str) -> RecordIndex:
    """Read what `write_index` wrote.

    Raises:
      UserError: it is missing or damaged; the message ends with `remedy`.
    """
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as file:
            description = json.loads(file["description"].tobytes())
            columns = {name: file[name] for name in _COLUMNS}
        if description.pop("format", None) != FORMAT:
            raise ValueError(f"the format is not {FORMAT}")
        _require_columns(columns)
    except Exception as error:  # NumPy and zipfile raise many types of exceptions
        problem = f"does not load: {type(error).__name__}: {str(error)[:100]}"
        raise UserError(path, "index", problem, remedy) from error
    return RecordIndex(description, **columns)


def _require_columns(columns):
    """Raise ValueError unless all columns fit together."""
    num_images, num_objects = len(columns["image_id"]), len(columns["object_id"])
    for name, (shape, dtype) in _COLUMNS.items():
        length = num_objects if name in _OF_OBJECTS else num_images
        column = columns[name]
        if column.shape != (length, *shape) or not np.issubdtype(column.dtype, dtype):
            raise ValueError(f"{name} is {column.dtype} {column.shape}")
    image = columns["object_image"]
    if num_objects and not (image.min() >= 0 and image.max() < num_images):
        raise ValueError("objects of images that are not there")
