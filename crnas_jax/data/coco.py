"""Detection data in COCO's layout: a folder of images and one json of annotations per split."""

import hashlib
import json
import math
import pathlib
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crnas_jax.data import images, masks
from crnas_jax.errors import UserError

# COCO's metrics leave larger objects out of account.
_LARGEST_AREA = 1e10


class CocoSource:
    """Random access to one split.

    Attributes:
      coco: the annotation file's content without the boxes left out; AP is scored against it, never
        against batches.
      category_ids: of the classes 1..C of the batches, in order.
      class_names: likewise.
      image_ids: int64 [images].
      sizes: int32 [images, 2], height and width as the file says.
      names: what tells images of different splits apart: the paths of the files.
      digest: of the annotation file.
      skipped: boxes left out because they have no size or nothing of them lies inside their image.
      cut: boxes that reach out of their image by more than a pixel; the part inside is used.
      set_apart: fields of an annotation that mark what is no ground truth in training and ignored
        in evaluation.
    """

    set_apart = ("iscrowd",)

    def __init__(
        self,
        images: str | pathlib.Path,
        annotations: str | pathlib.Path,
        strict: bool = False,
        with_masks: bool = False,
    ):
        """Reads the annotation file; images are read one by one later.

        Args:
          images: folder of the images.
          annotations: json file of the split.
          strict: refuse what `skipped` and `cut` would count.
          with_masks: give the objects' masks too; an object without one is refused.

        Raises:
          UserError: the file is missing, is no json, or lacks what COCO asks for.
        """
        self._folder, self._file = pathlib.Path(images), pathlib.Path(annotations)
        self._strict, self._with_masks = strict, with_masks
        self.coco, self.digest = self._load()
        for field in ("images", "annotations", "categories"):
            if not isinstance(self.coco, dict) or not isinstance(self.coco.get(field), list):
                raise self._fault(field, "missing, or no list")
        self._read_categories()
        self._read_images()
        self.skipped = self.cut = 0
        self._objects = self._read_objects()

    def _load(self):
        """Content of the annotation file, and its digest."""
        try:
            content = self._file.read_bytes()
            return json.loads(content), hashlib.sha256(content).hexdigest()
        except OSError as error:
            raise self._fault("file", error.strerror or "unreadable") from error
        except (ValueError, RecursionError) as error:
            raise self._fault("json", str(error)) from error

    def _fault(self, field, problem, remedy="give a COCO annotation file"):
        return UserError(self._file, field, problem, remedy)

    def _entries(self, field):
        """(where, entry) of a list; entries are objects and have an id of their own."""
        seen = set()
        for index, entry in enumerate(self.coco[field]):
            where = f"{field}[{index}]"
            if not isinstance(entry, dict):
                raise self._fault(where, "is no object")
            if field != "annotations":
                number = self._integer(where, entry, "id")
                if number in seen:
                    raise self._fault(where, f"id {number} comes twice", "give each its own id")
                seen.add(number)
            yield where, entry

    def _integer(self, where, entry, field, least=-(2**63)):
        value = entry.get(field)
        if type(value) is not int or not least <= value < 2**63:
            problem = "missing" if value is None else f"{str(value)[:40]!r} is no such number"
            kind = "whole number" + ("" if least < 0 else f" of at least {least}")
            raise self._fault(f"{where}.{field}", problem, f"give a {kind}")
        return value

    def _read_categories(self):
        names = {}
        for where, category in self._entries("categories"):
            if not isinstance(category.get("name"), str):
                raise self._fault(f"{where}.name", "missing, or no text", "name the class")
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
                self._integer(where, image, side, least=1)
            name = image.get("file_name")
            if not isinstance(name, str) or not name:
                raise self._fault(f"{where}.file_name", "missing, or no text", "name the file")
            # The name comes out of a file: it must not lead out of the folder.
            path = pathlib.PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or "\0" in name:
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
            raise self._fault("images", "a height or width is beyond any image", "mend it")
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.names = [str(self._folder / image["file_name"]) for image in entries]

    def _read_objects(self):
        label_of = {category: label for label, category in enumerate(self.category_ids, 1)}
        size_of = dict(zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True))
        objects, kept = defaultdict(list), []
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
            if not 0 <= area < _LARGEST_AREA:
                raise self._fault(f"{where}.area", f"{area}", "give the object's area in pixels")
            crowd = False
            for field in self.set_apart:
                flag = annotation.get(field, 0)
                if flag not in (0, 1):
                    raise self._fault(f"{where}.{field}", f"{flag!r}", "give 0 or 1")
                crowd = crowd or bool(flag)
            rows, columns = size_of[image]
            box = (max(x, 0.0), max(y, 0.0), min(x + width, columns), min(y + height, rows))
            # In the batches' precision: a box may have a size in float64 alone.
            x0, y0, x1, y1 = np.array(box, np.float32)
            empty = not (width > 0 and height > 0 and x1 > x0 and y1 > y0)
            out = max(-x, -y, x + width - columns, y + height - rows) > 1
            if self._strict and (empty or out):
                raise self._fault(
                    f"{where}.bbox",
                    f"{[x, y, width, height]} "
                    + ("has no size inside" if empty else "reaches out of")
                    + f" its image of {columns} x {rows} pixels",
                    "mend it, or set data.strict=False to leave it out",
                )
            mask = None
            if self._with_masks and not empty:
                given = annotation.get("segmentation")
                mask = masks.checked(given, rows, columns)
                if mask is None:
                    raise self._fault(
                        f"{where}.segmentation",
                        f"{str(given)[:40]} is no mask of {rows} x {columns} pixels",
                        "give polygons or a run-length code, or use a detector without masks",
                    )
                annotation = {**annotation, "segmentation": mask}
            self.skipped += empty
            self.cut += out and not empty
            if not empty:
                kept.append(annotation)
                objects[image].append((box, label_of[category], area, crowd, mask))
        self.coco = {**self.coco, "annotations": kept}
        return objects

    def _numbers(self, where, annotation, field, number):
        values = annotation.get(field)
        whole = isinstance(values, list) and len(values) == number
        if whole and all(
            type(value) in (int, float) and abs(value) < 1e12 and math.isfinite(value)
            for value in values
        ):
            return [float(value) for value in values]
        problem = "missing" if values is None else f"{str(values)[:80]}"
        raise self._fault(f"{where}.{field}", problem, f"give {number} finite number(s)")

    def check_images(self) -> None:
        """Looks at every file's header.

        Raises:
          UserError: an image is missing, is none, or has another size than the file says.
        """
        with ThreadPoolExecutor(16) as pool:
            for _ in pool.map(self._check_image, range(len(self))):
                pass

    def _check_image(self, index):
        path, expected = self.names[index], tuple(self.sizes[index].tolist())
        found = images.sizes(path)
        if found is not None and expected not in found:
            raise self._other_size(path, *found[0])

    def _other_size(self, path, height, width):
        return UserError(
            path,
            "size",
            f"{height} x {width} pixels, {self._file} says otherwise",
            "mend height and width there",
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One image and its objects.

        Returns:
          `image` uint8 [H, W, 3] RGB, `image_id`, `boxes` float32 [n, 4] xyxy in its pixels,
          `labels` int32 [n], `area` float32 [n], `crowd` bool [n]; with masks also
          `segmentations`, a list of n polygon lists or run-length codes.

        Raises:
          UserError: the image is missing, broken or of another size than the file says.
        """
        path, expected = self.names[index], tuple(self.sizes[index].tolist())
        # Boxes may have been drawn on the image as stored or as its EXIF tag turns it: the size in
        # the annotation file tells. Where both have that size, as stored, which is COCO's way.
        image = images.read(path, turn=False)
        if image.shape[:2] != expected:
            image = images.read(path)
        if image.shape[:2] != expected:
            raise self._other_size(path, *image.shape[:2])
        image_id = self.image_ids[index]
        objects = self._objects[int(image_id)]
        record = {"image": image, **objects_record(image_id, objects)}
        if self._with_masks:
            record["segmentations"] = [mask for *_, mask in objects]
        return record


def category_entries(category_ids: list[int], class_names: list[str]) -> list[dict]:
    """COCO's list of categories, of the labels 1..C."""
    return [
        {"id": category, "name": name}
        for category, name in zip(category_ids, class_names, strict=True)
    ]


def objects_record(image_id: int, objects: list[tuple]) -> dict[str, np.ndarray]:
    """Arrays from a list of (xyxy box, label, area, crowd, ...)."""
    return {
        "image_id": np.int64(image_id),
        "boxes": np.array([box for box, *_ in objects], np.float32).reshape(-1, 4),
        "labels": np.array([label for _, label, *_ in objects], np.int32),
        "area": np.array([area for _, _, area, *_ in objects], np.float32),
        "crowd": np.array([crowd for _, _, _, crowd, *_ in objects], bool),
    }
