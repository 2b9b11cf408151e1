"""Detection data in COCO's layout: a folder of images and one json of annotations per split."""

import hashlib
import json
import pathlib
from collections import defaultdict

import cv2
import numpy as np

from crnas_jax.errors import UserError


class CocoSource:
    """Random access to one split.

    Attributes:
      coco: the annotation file's content; AP is scored against it, never against batches.
      category_ids: of the classes 1..C of the batches, in order.
      class_names: likewise.
      image_ids: int64 [images].
      sizes: int32 [images, 2], height and width as the file says.
      names: what tells images of different splits apart: the paths of the files.
      digest: of the annotation file.
      skipped: boxes left out because nothing of them lies inside their image.
    """

    def __init__(self, images: str | pathlib.Path, annotations: str | pathlib.Path):
        """Reads the annotation file; images are read one by one later.

        Args:
          images: folder of the images.
          annotations: json file of the split.

        Raises:
          UserError: the file is missing, is no json, or lacks what COCO asks for.
        """
        self._folder, self._file = pathlib.Path(images), pathlib.Path(annotations)
        try:
            content = self._file.read_bytes()
            self.coco = json.loads(content)
        except OSError as error:
            raise self._fault("file", error.strerror or "unreadable") from error
        except ValueError as error:
            raise self._fault("json", str(error)) from error
        self.digest = hashlib.sha256(content).hexdigest()
        for field in ("images", "annotations", "categories"):
            if not isinstance(self.coco, dict) or not isinstance(self.coco.get(field), list):
                raise self._fault(field, "missing")
        try:
            categories = sorted(self.coco["categories"], key=lambda category: category["id"])
            self.category_ids = [category["id"] for category in categories]
            self.class_names = [str(category["name"]) for category in categories]
            self._images = sorted(self.coco["images"], key=lambda image: image["id"])
            self.image_ids = np.array([image["id"] for image in self._images], np.int64)
            sizes = [(image["height"], image["width"]) for image in self._images]
            self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
            files = [image["file_name"] for image in self._images]
        except (KeyError, TypeError, ValueError) as error:
            problem = f"an entry lacks or spoils {error}"
            raise self._fault("images or categories", problem) from error
        for field, ids in (("images", self.image_ids), ("categories", self.category_ids)):
            if len(set(ids)) != len(ids):
                raise self._fault(field, "an id comes twice")
        if not categories:
            raise self._fault("categories", "there are none")
        self.names = [str(self._folder / name) for name in files]
        self.skipped = 0
        self._objects = self._read_objects()

    def _fault(self, field, problem):
        return UserError(self._file, field, problem, "give a COCO annotation file")

    def _read_objects(self):
        label_of = {category: label for label, category in enumerate(self.category_ids, 1)}
        size_of = dict(zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True))
        objects = defaultdict(list)
        for index, annotation in enumerate(self.coco["annotations"]):
            where = f"annotations[{index}]"
            try:
                x, y, width, height = (float(value) for value in annotation["bbox"])
                image, category = annotation["image_id"], annotation["category_id"]
                area = float(annotation.get("area", width * height))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    self._file, where, f"bbox, area, image_id or category_id: {error}", "mend it"
                ) from error
            if category not in label_of:
                raise UserError(
                    self._file,
                    where,
                    f"category_id {category} is not a category",
                    "add the category",
                )
            if image not in size_of:
                raise UserError(
                    self._file, where, f"image_id {image} is not an image", "add the image"
                )
            rows, columns = size_of[image]
            box = (max(x, 0.0), max(y, 0.0), min(x + width, columns), min(y + height, rows))
            if not (box[2] > box[0] and box[3] > box[1]):
                self.skipped += 1
                continue
            crowd = bool(annotation.get("iscrowd", 0))
            objects[image].append((box, label_of[category], area, crowd))
        return objects

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One image and its objects.

        Returns:
          `image` uint8 [H, W, 3] RGB, `image_id`, `boxes` float32 [n, 4] xyxy in its pixels,
          `labels` int32 [n], `area` float32 [n], `crowd` bool [n].

        Raises:
          UserError: the image is missing, broken or of another size than the file says.
        """
        path = self.names[index]
        # COCO's boxes are in the pixels of the file as stored: the EXIF rotation is not applied.
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise UserError(
                path, "image", "missing or broken", "restore the file or remove its entry"
            )
        if image.shape[:2] != tuple(self.sizes[index]):
            height, width = image.shape[:2]
            raise UserError(
                path,
                "size",
                f"{height} x {width}, {self._file} says otherwise",
                "mend height and width",
            )
        return {
            "image": image,
            **objects_record(self.image_ids[index], self._objects[self._images[index]["id"]]),
        }


def objects_record(image_id: int, objects: list[tuple]) -> dict[str, np.ndarray]:
    """Arrays from a list of (xyxy box, label, area, crowd)."""
    return {
        "image_id": np.int64(image_id),
        "boxes": np.array([box for box, _, _, _ in objects], np.float32).reshape(-1, 4),
        "labels": np.array([label for _, label, _, _ in objects], np.int32),
        "area": np.array([area for _, _, area, _ in objects], np.float32),
        "crowd": np.array([crowd for _, _, _, crowd in objects], bool),
    }
