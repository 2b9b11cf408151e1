"""Read detection data in COCO's layout: a folder of images and one JSON file per split."""

import dataclasses
import hashlib
import json
import math
import pathlib

import numpy as np

from crnas_jax.data import images, masks
from crnas_jax.data.annotated import AnnotatedImages
from crnas_jax.data.objects import MAX_AREA, Objects, known_areas
from crnas_jax.data.orientation import AUTO
from crnas_jax.data.paths import image_path, leads_out
from crnas_jax.data.stored import ImageFiles
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import as_path, read_regular


class CocoSource(AnnotatedImages):
    """Random access to one split, a `crnas_jax.data.source.DetectionSource`.

    Attributes:
      coco: content of the annotation file without the skipped boxes; AP is computed against it,
        never against batches.
      annotated: its annotations, the skipped boxes among them.
      category_ids: COCO category ids of the labels 1..C, in ascending order.
      class_names: names of the labels 1..C.
      image_ids: COCO image ids in ascending order, int64 [images].
      sizes: heights and widths according to the annotation file, pixels, int32 [images, 2].
      image_names: paths of the image files, by which images of different splits are told apart.
      digest: SHA-256 of the annotation file, in hexadecimal.
    """

    def __init__(
        self,
        images: str | pathlib.Path,
        annotations: str | pathlib.Path,
        strict: bool = False,
        with_masks: bool = False,
        exif: str = AUTO,
        max_pixels: int = images.MAX_PIXELS,
    ):
        """Read the annotation file; images are read one by one later.

        Args:
          images: folder of the images.
          annotations: JSON file of the split.
          strict: whether boxes that would be skipped or clipped raise an error instead.
          with_masks: whether records contain masks; an object without a mask raises an error.
          exif: what boxes on photographs with an EXIF orientation were drawn on, see
            `orientation.Orientations`.
          max_pixels: pixels of the largest image that is decoded.

        Raises:
          UserError: the file is missing, is not JSON, or lacks a field that COCO's format requires.
        """
        super().__init__(strict, with_masks, exif, max_pixels)
        self._folder, self.place = as_path(images), as_path(annotations)
        self.coco, self.digest = self._load()
        for field in ("images", "annotations", "categories"):
            if not isinstance(self.coco, dict) or not isinstance(self.coco.get(field), list):
                raise self._fault(field, "missing, or no list")
        self._read_categories()
        self._read_images()
        self._read_objects()

    def _load(self):
        """Return the content of the annotation file and its digest."""
        try:
            content = read_regular(self.place)
            return json.loads(content), hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise self._fault("file", error.strerror or "unreadable") from error
        except (ValueError, RecursionError) as error:
            problem = "the file is empty" if not content.strip() else str(error)
            raise self._fault("json", problem) from error

    def _fault(self, field, problem, remedy="give a COCO annotation file"):
        return UserError(self.place, field, problem, remedy)

    def _entries(self, field):
        """Yield (place, entry) for each entry of a list; check its type and that ids are unique."""
        seen_ids = set()
        for index, entry in enumerate(self.coco[field]):
            where = f"{field}[{index}]"
            if not isinstance(entry, dict):
                raise self._fault(where, "is no object")
            if field != "annotations":
                entry_id = self._integer(where, entry, "id")
                if entry_id in seen_ids:
                    raise self._fault(where, f"id {entry_id} comes twice", "give each its own id")
                seen_ids.add(entry_id)
            yield where, entry

    def _integer(self, where, entry, field, minimum=-(2**63)):
        value = entry.get(field)
        if type(value) is not int or not minimum <= value < 2**63:
            as_text = " as text" if isinstance(value, str) else ""
            problem = "missing" if value is None else f"{repr(value)[:40]}{as_text} is not valid"
            kind = "whole number " + ("below 2**63" if minimum < 0 else f"of at least {minimum}")
            raise self._fault(f"{where}.{field}", problem, f"give a {kind}")
        return value

    def _read_categories(self):
        names = {}
        for where, category in self._entries("categories"):
            if not isinstance(category.get("name"), str):
                raise self._fault(f"{where}.name", "missing, or not text", "name the class")
            if category["name"] in names.values():
                raise self._fault(f"{where}.name", f"{category['name']!r} comes twice", "rename it")
            names[category["id"]] = category["name"]
        if not names:
            raise self._fault("categories", "there are none", "list the classes")
        self.category_ids = sorted(names)
        self.class_names = [names[category] for category in self.category_ids]

    def _read_images(self):
        entries = []
        for where, image in self._entries("images"):
            for side in ("height", "width"):
                self._integer(where, image, side, minimum=1)
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise self._fault(f"{where}.file_name", "missing, or not text", "name the file")
            # File names are untrusted input and must stay inside the image folder.
            if leads_out(name):
                raise self._fault(
                    f"{where}.file_name",
                    f"{name[:80]!r} leads out of {self._folder}",
                    "give a path inside the folder of images",
                )
            entries.append(image)
        if not entries:
            raise self._fault("images", "there are none", "give at least one image")
        entries.sort(key=lambda image: image["id"])
        self.image_ids = np.array([image["id"] for image in entries], np.int64)
        sizes = [(image["height"], image["width"]) for image in entries]
        if max(map(max, sizes)) >= 2**31:
            raise self._fault("images", "a height or width is beyond any image", "correct it")
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        paths = [image_path(self._folder, entry["file_name"]) for entry in entries]
        self.image_names, self.stored_images = list(map(str, paths)), ImageFiles(paths)

    def _read_objects(self):
        label_of = {category: label for label, category in enumerate(self.category_ids, 1)}
        index_of = {image_id: index for index, image_id in enumerate(self.image_ids.tolist())}
        annotations = self.coco["annotations"]
        table = np.zeros((len(annotations), 8))
        for row, (where, annotation) in enumerate(self._entries("annotations")):
            image = self._integer(where, annotation, "image_id")
            category = self._integer(where, annotation, "category_id")
            if category not in label_of:
                raise self._fault(
                    where, f"category_id {category} is not a category", "add the category"
                )
            if image not in index_of:
                raise self._fault(where, f"image_id {image} is not an image", "add the image")
            box = self._numbers(where, annotation, "bbox", 4)
            area = annotation.get("area", box[2] * box[3])
            (area,) = self._numbers(where, {"area": [area]}, "area", 1)
            if not 0 <= area < MAX_AREA:
                raise self._fault(f"{where}.area", f"{area}", "give the object's area in pixels")
            crowd = False
            for field in self.ignore_fields:
                flag = annotation.get(field, 0)
                if flag not in (0, 1):
                    raise self._fault(f"{where}.{field}", f"{flag!r}", "give 0 or 1")
                crowd = crowd or bool(flag)
            table[row] = (index_of[image], label_of[category], area, crowd, *box)
        annotated = Objects.from_table(table)
        areas = known_areas(annotated)
        for row in np.flatnonzero(areas != annotated.area).tolist():
            annotations[row] = {**annotations[row], "area": areas[row].item()}
        usable = self._keep_usable(dataclasses.replace(annotated, area=areas))
        usable = np.flatnonzero(usable).tolist()
        if self._with_masks:
            for row in usable:
                annotations[row] = self._with_mask(row, annotations[row])
        self.annotated = annotations
        self.coco = {**self.coco, "annotations": [annotations[row] for row in usable]}

    def _with_mask(self, row, annotation):
        """Return an annotation with a valid mask in it."""
        height, width = self.sizes[self._position(annotation["image_id"])].tolist()
        segmentation = annotation.get("segmentation")
        mask = masks.validated(segmentation, height, width)
        if mask is None:
            raise self._fault(
                f"annotations[{row}].segmentation",
                f"{str(segmentation)[:40]} is no mask of {height} x {width} pixels",
                "give polygons or a run-length code, or use a detector without masks",
            )
        return {**annotation, "segmentation": mask}

    def _position(self, image_id):
        return int(np.searchsorted(self.image_ids, image_id))

    def _read(self, index):
        image, header = self.stored_images[index].read(self._max_pixels)
        if not self._with_masks:
            return image, header, None
        rows = self._objects.rows(index).tolist()
        return image, header, [self.coco["annotations"][row]["segmentation"] for row in rows]

    def _fault_of_object(self, row, field, problem, remedy):
        return self._fault(f"annotations[{row}].{field}", problem, remedy)

    def _numbers(self, where, annotation, field, count):
        values = annotation.get(field)
        complete = isinstance(values, list) and len(values) == count
        if complete and all(
            type(value) in (int, float) and abs(value) < 1e12 and math.isfinite(value)
            for value in values
        ):
            return [float(value) for value in values]
        problem = "missing" if values is None else f"{str(values)[:80]}"
        raise self._fault(f"{where}.{field}", problem, f"give {count} finite number(s)")

    def _size_fault(self, index, height, width):
        return UserError(
            self.image_names[index],
            "size",
            f"{height} x {width} pixels, {self.place} says otherwise",
            "correct height and width there",
        )


def category_entries(category_ids: list[int], class_names: list[str]) -> list[dict]:
    """Return COCO's list of categories.

    Args:
      category_ids: ids of the labels 1..C.
      class_names: names of the labels 1..C.
    """
    return [
        {"id": category, "name": name}
        for category, name in zip(category_ids, class_names, strict=True)
    ]
