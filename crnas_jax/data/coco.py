"""Read detection data in COCO's layout: a folder of images and one JSON file per split."""

import functools
import hashlib
import json
import math
import pathlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crnas_jax.data import images, masks
from crnas_jax.data.orientation import AUTO, SHOWN, Orientations
from crnas_jax.data.paths import image_path, leads_out
from crnas_jax.data.source import objects_record
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import read_regular

# COCO's metrics do not count objects of this area or more, in square pixels.
_MAX_AREA = 1e10
# Share of boxes out of their image above which the numbers may mean something else.
_MANY = 0.2


class CocoSource:
    """Random access to one split, a `crnas_jax.data.source.DetectionSource`.

    Attributes:
      coco: content of the annotation file without the skipped boxes; AP is computed against it,
        never against batches.
      category_ids: COCO category ids of the labels 1..C, in ascending order.
      class_names: names of the labels 1..C.
      image_ids: COCO image ids in ascending order, int64 [images].
      sizes: heights and widths according to the annotation file, pixels, int32 [images, 2].
      image_names: paths of the image files, by which images of different splits are told apart.
      digest: SHA-256 of the annotation file, in hexadecimal.
      num_skipped_boxes: number of boxes left out because they have no size or lie entirely outside
        their image.
      num_clipped_boxes: number of boxes that extend beyond their image by more than a pixel; the
        part inside is used.
      ignore_fields: annotation fields that mark an object as no ground truth in training and as
        ignored in evaluation.
      metrics: metric families that are computed for this data set.
    """

    ignore_fields = ("iscrowd",)
    metrics = ("coco",)

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
        self._folder, self._file = pathlib.Path(images), pathlib.Path(annotations)
        self._strict, self._with_masks = strict, with_masks
        self._exif, self._max_pixels = exif, max_pixels
        self.coco, self.digest = self._load()
        for field in ("images", "annotations", "categories"):
            if not isinstance(self.coco, dict) or not isinstance(self.coco.get(field), list):
                raise self._fault(field, "missing, or no list")
        self._read_categories()
        self._read_images()
        self.num_skipped_boxes = self.num_clipped_boxes = self._num_16_bits = 0
        self._objects = self._read_objects()

    def _load(self):
        """Return the content of the annotation file and its digest."""
        try:
            content = read_regular(self._file)
            return json.loads(content), hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise self._fault("file", error.strerror or "unreadable") from error
        except (ValueError, RecursionError) as error:
            problem = "the file is empty" if not content.strip() else str(error)
            raise self._fault("json", problem) from error

    def _fault(self, field, problem, remedy="give a COCO annotation file"):
        return UserError(self._file, field, problem, remedy)

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
        self.image_names = [str(image_path(self._folder, entry["file_name"])) for entry in entries]

    def _read_objects(self):
        label_of = {category: label for label, category in enumerate(self.category_ids, 1)}
        size_of = dict(zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True))
        objects, valid_annotations = defaultdict(list), []
        for where, annotation in self._entries("annotations"):
            image = self._integer(where, annotation, "image_id")
            category = self._integer(where, annotation, "category_id")
            if category not in label_of:
                raise self._fault(
                    where, f"category_id {category} is not a category", "add the category"
                )
            if image not in size_of:
                raise self._fault(where, f"image_id {image} is not an image", "add the image")
            x, y, width, height = self._numbers(where, annotation, "bbox", 4)
            area = annotation.get("area", width * height)
            (area,) = self._numbers(where, {"area": [area]}, "area", 1)
            if not 0 <= area < _MAX_AREA:
                raise self._fault(f"{where}.area", f"{area}", "give the object's area in pixels")
            if area == 0:  # some tools write 0 for unknown, and AP by size would go by it
                area = max(width, 0.0) * max(height, 0.0)
                annotation = {**annotation, "area": area}
            crowd = False
            for field in self.ignore_fields:
                flag = annotation.get(field, 0)
                if flag not in (0, 1):
                    raise self._fault(f"{where}.{field}", f"{flag!r}", "give 0 or 1")
                crowd = crowd or bool(flag)
            rows, columns = size_of[image]
            box = (max(x, 0.0), max(y, 0.0), min(x + width, columns), min(y + height, rows))
            # Batches hold float32, in which a box with a size in float64 may have none.
            x0, y0, x1, y1 = np.array(box, np.float32)
            empty = not (width > 0 and height > 0 and x1 > x0 and y1 > y0)
            outside = max(-x, -y, x + width - columns, y + height - rows) > 1
            if self._strict and (empty or outside):
                raise self._fault(
                    f"{where}.bbox",
                    f"{[x, y, width, height]} "
                    + ("has no size inside" if empty else "reaches out of")
                    + f" its image of {columns} x {rows} pixels",
                    "correct it, or set data.strict=False to leave it out",
                )
            mask = None
            if self._with_masks and not empty:
                segmentation = annotation.get("segmentation")
                mask = masks.validated(segmentation, rows, columns)
                if mask is None:
                    raise self._fault(
                        f"{where}.segmentation",
                        f"{str(segmentation)[:40]} is no mask of {rows} x {columns} pixels",
                        "give polygons or a run-length code, or use a detector without masks",
                    )
                annotation = {**annotation, "segmentation": mask}
            self.num_skipped_boxes += empty
            self.num_clipped_boxes += outside and not empty
            if not empty:
                valid_annotations.append(annotation)
                objects[image].append((box, label_of[category], area, crowd, mask))
        self.coco = {**self.coco, "annotations": valid_annotations}
        return objects

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

    @property
    def image_files(self) -> list[str]:
        """Paths by which duplicates between splits are looked for."""
        return self.image_names

    def check_images(self) -> None:
        """Check every image file, and decide how those with an EXIF orientation are read.

        Raises:
          UserError: an image is missing, broken, or of another size than the annotation file says;
            or nothing tells what the boxes on photographs with an orientation were drawn on.
        """
        _ = self._orientations.choice

    @functools.cached_property
    def _orientations(self) -> Orientations:
        with ThreadPoolExecutor(16) as pool:
            headers = list(pool.map(self._header, range(len(self))))
        self._num_16_bits = sum(header.has_16_bits for header in headers)
        turned = {
            path: (header, tuple(size))
            for path, header, size in zip(
                self.image_names, headers, self.sizes.tolist(), strict=True
            )
            if header.orientation != 1
        }
        return Orientations(self._file, self._exif, turned)

    def _header(self, index):
        header = images.check(self.image_names[index], self._max_pixels)
        self._require_size(index, header)
        return header

    def _require_size(self, index, header):
        if tuple(self.sizes[index].tolist()) not in (header.stored_size, header.shown_size):
            raise self._size_fault(self.image_names[index], *header.stored_size)

    def notes(self) -> list[str]:
        """Say what of the split is left out, changed, or a choice: lines for the plan."""
        notes = []
        if self.num_skipped_boxes:
            notes.append(
                f"{self.num_skipped_boxes} boxes without size or outside their image are left out, "
                "in training and in evaluation (data.strict=True refuses them)"
            )
        if self.num_clipped_boxes:
            is_much = self.num_clipped_boxes > _MANY * len(self.coco["annotations"])
            notes.append(
                f"{'WARNING: ' * is_much}{self.num_clipped_boxes} boxes reach out of their image; "
                "training uses the part inside"
            )
        if self._num_16_bits:
            notes.append(
                f"{self._num_16_bits} images have samples of 16 bits: their upper 8 are read "
                "(scale data of fewer bits to the full range)"
            )
        return notes + self._orientations.notes()

    def _is_turned(self, header, size):
        """Tell whether boxes belong to the image as shown; most images need no look at others."""
        if header.stored_size != header.shown_size:
            return tuple(size.tolist()) == header.shown_size
        return self._orientations.choice == SHOWN

    def _size_fault(self, path, height, width):
        return UserError(
            path,
            "size",
            f"{height} x {width} pixels, {self._file} says otherwise",
            "correct height and width there",
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Read one image and its objects.

        Args:
          index: position of the image in `image_ids`.

        Returns:
          `image` uint8 [H, W, 3] RGB, `image_id` int64, `boxes` float32 [n, 4] xyxy in pixels of
          the image, `labels` int32 [n] (1..C), `area` float32 [n] in square pixels, `crowd` bool
          [n]; with masks also `segmentations`, a list of n polygon lists or run-length codes.

        Raises:
          UserError: the image is missing, broken, or of another size than the annotation file says.
        """
        image, header = images.read_stored(self.image_names[index], self._max_pixels)
        self._require_size(index, header)
        if header.orientation != 1 and self._is_turned(header, self.sizes[index]):
            image = images.turn(image, header.orientation)
        image_id = self.image_ids[index]
        objects = self._objects[int(image_id)]
        record = {"image": image, **objects_record(image_id, objects)}
        if self._with_masks:
            record["segmentations"] = [mask for *_, mask in objects]
        return record


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
