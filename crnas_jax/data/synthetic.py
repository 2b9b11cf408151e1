"""A detection set made of nothing: textured shapes at several scales, deterministic by index."""

import cv2
import numpy as np

from crnas_jax.data.coco import category_entries, objects_record

CLASS_NAMES = ("disc", "square", "triangle")


class SyntheticSource:
    """Random access to generated images; the same interface as `CocoSource`, without files.

    Image k of a seed is always the same. Splits are made with different seeds. Every 16th image has
    no object.
    """

    def __init__(self, number: int, size: int = 128, seed: int = 0, max_objects: int = 5):
        """Args: images, side in pixels, seed of the split, most objects in an image."""
        self._size, self._seed, self._max_objects = size, seed, max_objects
        self.category_ids = list(range(1, len(CLASS_NAMES) + 1))
        self.class_names = list(CLASS_NAMES)
        self.image_ids = np.arange(1, number + 1, dtype=np.int64)
        self.sizes = np.full((number, 2), size, np.int32)
        self.digest = f"synthetic-{number}-{size}-{seed}-{max_objects}"
        self.skipped, self.cut, self.set_apart = 0, 0, ("iscrowd",)
        self.coco = self._annotations()
        self.names = [image["file_name"] for image in self.coco["images"]]

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """As `CocoSource`."""
        rng, objects = self._layout(index)
        image = texture(rng, self._size, contrast=50)
        for box, label, _, _ in objects:
            mask = draw_shape(rng, label, box, self._size)
            image = np.where(mask[..., None] > 0, texture(rng, self._size, contrast=110), image)
        return {"image": image.astype(np.uint8), **objects_record(self.image_ids[index], objects)}

    def _layout(self, index):
        """Boxes and labels, drawn before any pixel so that they cost nothing without the image."""
        rng = np.random.default_rng([self._seed, index])
        number = 0 if index % 16 == 15 else int(rng.integers(1, self._max_objects + 1))
        objects, occupied = [], []
        for _ in range(number * 4):
            if len(objects) == number:
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
    """Stripes of random direction, period and colour, with noise; [size, size, 3]."""
    y, x = np.mgrid[:size, :size]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 24)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    colour = rng.uniform(128 - contrast, 128 + contrast, 3)
    image = colour + wave[..., None] * rng.uniform(10, 30, 3) + rng.normal(0, 6, (size, size, 3))
    return np.clip(image, 0, 255)


def draw_shape(rng: np.random.Generator, label: int, box, size: int) -> np.ndarray:
    """Mask [size, size] of the shape of a class (1-based) that fills a box."""
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
