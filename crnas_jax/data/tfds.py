"""Sources of detection and classification data in TFDS's layout, read without TensorFlow."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from crnas_jax.data import images, masks
from crnas_jax.data.annotated import AnnotatedImages
from crnas_jax.data.objects import known_areas
from crnas_jax.data.orientation import AUTO, SHOWN, STORED
from crnas_jax.data.records.features import ClassificationFeatures, DetectionFeatures
from crnas_jax.data.records.folder import RecordFolder
from crnas_jax.data.records.index import FLAGS
from crnas_jax.data.records.split import Records, StoredRecord
from crnas_jax.errors import UserError


class _Rows(Sequence):
    """A sequence whose entries are made when they are asked for."""

    def __init__(self, length: int, make: Callable[[int], object]):
        self._length, self._make = length, make

    def __len__(self):
        return self._length

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self._make(entry) for entry in range(*row.indices(self._length))]
        if not -self._length <= row < self._length:
            raise IndexError(row)
        return self._make(row % self._length)

    def __iter__(self) -> Iterator:
        return map(self._make, range(self._length))


class _MaskedEntry(Mapping):
    """An annotation whose `segmentation` is read from its record when it is asked for."""

    def __init__(self, fields: dict, read: Callable[[], object]):
        self._fields, self._read = fields, read

    def __getitem__(self, name):
        return self._read() if name == "segmentation" else self._fields[name]

    def __iter__(self):
        return iter((*self._fields, "segmentation"))

    def __len__(self):
        return len(self._fields) + 1


class TfdsSource(AnnotatedImages):
    """Random access to one split, a `crnas_jax.data.source.DetectionSource`.

    What is annotated is held in arrays; the entries of `coco` are made when they are asked for.

    Attributes:
      coco: content of a COCO annotation file without the skipped boxes.
      category_ids: category ids of the labels 1..C: of own records the annotations', else 1..C.
      class_names: names of the labels 1..C.
      image_ids: ids in ascending order, int64 [images].
      sizes: heights and widths that the annotations belong to, pixels, int32 [images, 2].
      image_names: folder, split and position of each image's record.
      digest: SHA-256 of ids and annotations, in hexadecimal.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        spec: str,
        strict: bool = False,
        with_masks: bool = False,
        exif: str = AUTO,
        max_pixels: int = images.MAX_PIXELS,
        field: str = "data",
        keep_in: pathlib.Path | None = None,
    ):
        """Read the index; images are read one by one later.

        Args:
          folder: folder of one version of a data set.
          spec: see `Records`.
          strict: see `CocoSource`.
          with_masks: see `CocoSource`.
          exif: see `CocoSource`; records of others are read as stored unless this says otherwise,
            as TFDS does.
          max_pixels: see `CocoSource`.
          field: see `Records`.
          keep_in: see `Records`.

        Raises:
          UserError: the folder, a record or an object cannot be used.
        """
        record_folder = RecordFolder(folder)
        self._features = features = DetectionFeatures.of(record_folder)
        self._records = Records(record_folder, spec, features, max_pixels, field, keep_in)
        index = self._records.index
        self._is_turned_by_default = not features.is_exact and exif == AUTO
        super().__init__(
            strict, with_masks, STORED if self._is_turned_by_default else exif, max_pixels
        )
        self.place = self._records.place
        if features.is_voc:
            self.ignore_fields, self.metrics = ("iscrowd", "difficult"), ("coco", "voc")
        categories = index.description["categories"]
        self.category_ids = [int(category["id"]) for category in categories]
        self.class_names = [str(category["name"]) for category in categories]
        self.image_ids, self.sizes = index.image_id, index.size
        self.image_names = [self._records.name(row) for row in range(len(index))]
        self.stored_images = _Rows(len(index), lambda row: StoredRecord(self._records, row))
        self.digest = self._records.digest()
        objects = index.objects
        if not features.is_exact and exif == SHOWN:
            objects = self._as_shown(objects)
        self._usable = self._keep_usable(dataclasses.replace(objects, area=known_areas(objects)))
        starts = np.searchsorted(index.object_image, np.arange(len(index)))
        # Which of its record's objects each is.
        self._ordinal = (np.arange(len(objects)) - starts[index.object_image])[self._usable]
        self._object_ids, self._flags = index.object_id[self._usable], index.flags[self._usable]
        self._require_masks()
        self.coco = {
            "images": _Rows(len(index), self._image_entry),
            "annotations": _Rows(len(self._object_ids), self._annotation),
            "categories": categories,
        }
        self._last_masks: tuple[int, list] = (-1, [])

    def _as_shown(self, objects):
        """Return the objects of records of others where boxes belong to images as shown."""
        exchanged = self._records.index.orientation > 4
        shown = np.where(exchanged[:, None], self.sizes[:, ::-1], self.sizes)
        if self._features.has_normalised_boxes:
            factor = (shown / self.sizes)[:, ::-1][objects.image]
            objects = dataclasses.replace(objects, bbox=objects.bbox * np.tile(factor, 2))
        self.sizes = shown
        return objects

    def _require_masks(self):
        if not self._with_masks:
            return
        if not self._features.has_masks:
            problem = "these records have no masks"
            raise UserError(self.place, "objects", problem, "use a detector without masks")
        if (self.sizes != self._records.index.size).any():
            problem = "masks of photographs that EXIF turns belong to the pixels as stored"
            raise UserError("config", "data.exif", problem, "set it to 'stored'")
        (missing,) = np.nonzero(~self._records.index.has_mask[self._usable])
        if len(missing):
            row = np.flatnonzero(self._usable)[missing[0]]
            remedy = "give polygons or a run-length code, or use a detector without masks"
            raise self._fault_of_object(row, "segmentation", "no mask of its image", remedy)

    def _fault_of_object(self, row, field, problem, remedy):
        image = int(self._records.index.object_image[row])
        where = int(row - np.searchsorted(self._records.index.object_image, image))
        return UserError(self._records.name(image), f"objects[{where}].{field}", problem, remedy)

    def _size_fault(self, index, height, width):
        problem = f"{height} x {width} pixels, its annotations say otherwise"
        return UserError(self.image_names[index], "size", problem, "prepare the records again")

    def notes(self) -> list[str]:
        """Say what is left out, changed, derived or chosen."""
        notes = super().notes() + list(self._records.index.description.get("notes", ()))
        num_turned = int((self._records.index.orientation != 1).sum())
        if num_turned and self._is_turned_by_default:
            notes.append(
                f"{num_turned} records hold photographs with an EXIF orientation, which TFDS does "
                "not apply: boxes are taken for those of the pixels as stored (data.exif)"
            )
        return notes

    def keep_index(self) -> None:
        """Write the index of records of others, so that the next run need not read them."""
        self._records.keep()

    def _image_entry(self, row):
        height, width = self.sizes[row].tolist()
        name = os.fsdecode(self._records.index.name[row]) or f"record {row}"
        image_id = int(self.image_ids[row])
        return {"id": image_id, "height": height, "width": width, "file_name": name}

    def _annotation(self, row):
        objects = self._objects.objects
        entry = {
            "id": int(self._object_ids[row]),
            "image_id": int(self.image_ids[objects.image[row]]),
            "category_id": self.category_ids[objects.label[row] - 1],
            "bbox": objects.bbox[row].tolist(),
            "area": float(objects.area[row]),
        }
        marks = dict(zip(FLAGS, self._flags[row].tolist(), strict=True))
        entry |= {flag: marks[flag] for flag in self._features.flags}
        return _MaskedEntry(entry, lambda: self._mask(row)) if self._with_masks else entry

    def _mask(self, row):
        """Read the mask of an object."""
        image = int(self._objects.objects.image[row])
        if self._last_masks[0] != image:  # the objects of an image follow each other
            example = self._records.example(image)
            self._last_masks = (image, self._features.segmentations(example))
        mask = self._last_masks[1][self._ordinal[row]]
        return masks.validated(mask, *self.sizes[image].tolist())

    def _read(self, index):
        example = self._records.example(index)
        image, header = images.decode(self.image_names[index], example["image"], self._max_pixels)
        if not self._with_masks:
            return image, header, None
        segmentations, size = self._features.segmentations(example), self.sizes[index].tolist()
        ordinals = self._ordinal[self._objects.rows(index)].tolist()
        return image, header, [masks.validated(segmentations[row], *size) for row in ordinals]


class TfdsClassification:
    """Random access to labelled images, a `crnas_jax.data.source.ClassificationSource`.

    Attributes:
      class_names: names of the labels 0..C-1.
      sizes: ones, int32 [images, 2], see `FolderSource`.
      digest: SHA-256 of ids and labels, in hexadecimal.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        spec: str,
        field: str = "pretrain.data",
        keep_in: pathlib.Path | None = None,
        max_pixels: int = images.MAX_PIXELS,
    ):
        """Read the index; arguments and errors as of `TfdsSource`."""
        record_folder = RecordFolder(folder)
        features = ClassificationFeatures.of(record_folder)
        self._records = Records(record_folder, spec, features, max_pixels, field, keep_in)
        self._max_pixels, self.class_names = max_pixels, features.class_names
        labels = self._records.index.label
        (wrong,) = np.nonzero((labels < 0) | (labels >= len(self.class_names)))
        if len(wrong):
            problem = f"{labels[wrong[0]]} of {len(self.class_names)} classes"
            raise UserError(self._records.name(wrong[0]), "label", problem, "prepare it again")
        self.sizes = np.ones((len(self._records), 2), np.int32)
        self.digest = self._records.digest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        """Read one image, as a record like that of `FolderSource`."""
        content = self._records.example(index)["image"]
        image, header = images.decode(self._records.name(index), content, self._max_pixels)
        return {
            "image": images.turn(image, header.orientation),
            "image_id": np.int64(index),
            "label": int(self._records.index.label[index]),
        }

    def keep_index(self) -> None:
        """See `TfdsSource.keep_index`."""
        self._records.keep()
