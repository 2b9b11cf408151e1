"""Generate a detection data set: textured shapes at several scales, deterministic by index."""

import cv2
import numpy as np

from crnas_jax.data.coco import category_entries
from crnas_jax.data.source import objects_record

CLASS_NAMES = ("disc", "square", "triangle")


class SyntheticSource:
    """Random access to generated images, a `crnas_jax.data.source.DetectionSource` without files.

    Image k of a seed is always the same. Splits are made with different seeds. Every 16th image has
    no object. The attributes are those of `CocoSource`.
    """

    ignore_fields = ("iscrowd",)
    metrics = ("coco",)
    stored_images = ()

    def __init__(self, num_images: int, size: int = 128, seed: int = 0, max_objects: int = 5):
        """Draw the annotations; images are generated one by one later.

        Args:
          num_images: number of images.
          size: side of the square images in pixels.
          seed: seed of the split.
          max_objects: largest number of objects in an image.
        """
        self._size, self._seed, self._max_objects = size, seed, max_objects
        self.category_ids = list(range(1, len(CLASS_NAMES) + 1))
        self.class_names = list(CLASS_NAMES)
        self.image_ids = np.arange(1, num_images + 1, dtype=np.int64)
        self.sizes = np.full((num_images, 2), size, np.int32)
        self.digest = f"synthetic-{num_images}-{size}-{seed}-{max_objects}"
        self.coco = self._annotations()
        self.image_names = [image["file_name"] for image in self.coco["images"]]

    def notes(self) -> list[str]:
        """Say nothing: generated annotations are as they should be."""
        return []

    def check_images(self) -> None:
        """Do nothing: generated images are never missing or broken."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Generate one image and its objects, as a record like that of `CocoSource`."""
        rng, objects = self._layout(index)
        image = texture(rng, self._size, contrast=50)
        for box, label, _, _ in objects:
            mask = draw_shape(rng, label, box, self._size)
            image = np.where(mask[..., None] > 0, texture(rng, self._size, contrast=110), image)
        return {"image": image.astype(np.uint8), **objects_record(self.image_ids[index], objects)}

    def _layout(self, index):
        """Draw the objects of an image, before any pixel so that annotations need no image."""
        rng = np.random.default_rng([self._seed, index])
        num_objects = 0 if index % 16 == 15 else int(rng.integers(1, self._max_objects + 1))
        objects, occupied = [], []
        for _ in range(num_objects * 4):
            if len(objects) == num_objects:
                break
            side = int(self._size * np.exp(rng.uniform(np.log(0.12), np.log(0.5))))
            x, y = (int(v) for v in rng.integers(0, self._size - side, 2))
            box = (x, y, x + side, y + side)
            overlap = any(
                min(box[2], b[2]) > max(box[0], b[0]) and min(box[3], b[3]) > max(box[1], b[1])
                for b in occupied
            )
            if not overlap:
                occupied.append(box)
                objects.append(
                    (box, int(rng.integers(1, len(CLASS_NAMES) + 1)), float(side * side), False)
                )
        return rng, objects

    def _annotations(self):
        images, annotations = [], []
        for index, image_id in enumerate(self.image_ids.tolist()):
            name = f"synthetic_{self._seed}_{index}"
            images.append(
                {"id": image_id, "height": self._size, "width": self._size, "file_name": name}
            )
            for (x0, y0, x1, y1), label, area, _ in self._layout(index)[1]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": area,
                        "iscrowd": 0,
                    }
                )
        categories = category_entries(self.category_ids, self.class_names)
        return {"images": images, "annotations": annotations, "categories": categories}


def texture(rng: np.random.Generator, size: int, contrast: float) -> np.ndarray:
    """Draw noisy stripes of random direction, period and colour.

    Args:
      rng: generator of the random draws.
      size: side of the image in pixels.
      contrast: largest distance of the colour's channels from mid-grey (128).

    Returns:
      RGB values from 0 to 255, float64 [size, size, 3].
    """
    y, x = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    colour = rng.uniform(128 - contrast, 128 + contrast, 3)
    image = colour + wave[..., None] * rng.uniform(10, 30, 3) + rng.normal(0, 6, (size, size, 3))
    return np.clip(image, 0, 255)


def draw_shape(rng: np.random.Generator, label: int, box, size: int) -> np.ndarray:
    """Draw the mask of a shape that fills a box.

    Args:
      rng: generator of the random draws.
      label: class of the shape, counted from 1 in the order of `CLASS_NAMES`.
      box: box in xyxy, whole pixels.
      size: side of the image in pixels.

    Returns:
      1 inside the shape and 0 elsewhere, uint8 [size, size].
    """
    mask = np.zeros((size, size), np.uint8)
    x0, y0, x1, y1 = box
    name = CLASS_NAMES[label - 1]
    if name == "disc":
        cv2.circle(mask, ((x0 + x1) // 2, (y0 + y1) // 2), (x1 - x0) // 2, 1, -1)
    elif name == "square":
        mask[y0:y1, x0:x1] = 1
    else:
        apex = int(rng.integers(x0, x1))
        cv2.fillPoly(mask, [np.array([(x0, y1), (x1, y1), (apex, y0)], np.int32)], 1)
    return mask
