"""From a record to a row of a batch, for detection and for classification."""

import dataclasses

import cv2
import numpy as np

from crnas_jax.data import masks


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """The shorter side becomes `short` pixels, unless the longer would exceed `long`.

    Attributes:
      short: see above.
      long: see above.
      multiple: canvas sides are multiples of it: the coarsest stride of backbone and neck.
    """

    short: int
    long: int
    multiple: int = 32

    def canvas(self, portrait: bool) -> tuple[int, int]:
        """(height, width) that hold every image of the orientation."""
        sides = (self.short, self.long)
        short, long = (-(-side // self.multiple) * self.multiple for side in sides)
        return (long, short) if portrait else (short, long)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after resizing, aspect kept to half a pixel."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


@dataclasses.dataclass(frozen=True)
class DetectionRows:
    """Resizes with kept aspect, mirrors, places on a canvas: the batch contract, without the batch
    axis and `weight`.

    Attributes:
      size: resizing rule.
      max_objects: N of the contract; of more, N are drawn, crowds last.
      flip: mirror half of the images left to right.
      mask_size: M of the contract's `masks`; 0 for none.
    """

    size: ImageSize
    max_objects: int = 1
    flip: bool = False
    mask_size: int = 0

    def __call__(
        self, record: dict, portrait: bool, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The row of one record of a source.

        Args:
          record: of a detection source.
          portrait: which canvas.
          rng: of the draws.
        """
        image, boxes = record["image"], record["boxes"]
        original = np.array(image.shape[:2], np.int32)
        flip = self.flip and rng.random() < 0.5
        height, width = self.size.resized(*original)
        image = _resize(image, height, width)
        scale = np.array([height, width], np.float32) / original
        boxes = boxes * scale[[1, 0, 1, 0]]
        if flip:
            image = image[:, ::-1]
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )
        canvas = np.zeros((*self.size.canvas(portrait), 3), np.uint8)
        canvas[:height, :width] = image

        number = len(boxes)
        kept = np.arange(number)
        if number > self.max_objects:
            drawn = rng.permutation(number)
            kept = drawn[np.argsort(record["crowd"][drawn], kind="stable")][: self.max_objects]

        def padded(values, dtype, shape=()):
            out = np.zeros((self.max_objects, *shape), dtype)
            out[: len(kept)] = values[kept]
            return out

        row = {
            "image": canvas,
            "image_size": np.array([height, width], np.int32),
            "original_size": original,
            "scale": scale.astype(np.float32),
            "image_id": record["image_id"],
            "boxes": padded(boxes, np.float32, (4,)),
            "labels": padded(record["labels"], np.int32),
            "area": padded(record["area"], np.float32),
            "valid": padded(np.ones(number, bool), bool),
            "crowd": padded(record["crowd"], bool),
        }
        if self.mask_size:
            row["masks"] = self._masks(record, kept, flip)
        return row

    def _masks(self, record, kept, flip):
        """Crops of the kept objects; a crowd's stays empty, since it is no ground truth."""
        crops = np.zeros((self.max_objects, self.mask_size, self.mask_size), np.uint8)
        for place, index in enumerate(kept):
            if not record["crowd"][index]:
                segmentation, box = record["segmentations"][index], record["boxes"][index]
                crops[place] = masks.crop(segmentation, box, self.mask_size)
        return crops[:, :, ::-1] if flip else crops


@dataclasses.dataclass(frozen=True)
class ClassificationRows:
    """Square crops: `image`, `image_size`, `image_id` and `label` (0-based).

    Attributes:
      size: side of the crop in pixels.
      augment: random area (8 to 100 % of the image), aspect (3/4 to 4/3) and mirroring, as
        Inception's (arXiv 1409.4842, section 6); otherwise the centre, 7/8 of the shorter side.
    """

    size: int
    augment: bool

    def __call__(
        self, record: dict, portrait: bool, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The row of one record of a classification source; `portrait` changes nothing."""
        del portrait
        image = record["image"]
        top, left, height, width = (self._random_crop if self.augment else _centre_crop)(
            image.shape[:2], rng
        )
        crop = _resize(image[top : top + height, left : left + width], self.size, self.size)
        if self.augment and rng.random() < 0.5:
            crop = crop[:, ::-1]
        return {
            "image": np.ascontiguousarray(crop),
            "image_size": np.array([self.size, self.size], np.int32),
            "image_id": record["image_id"],
            "label": np.int32(record["label"]),
        }

    @staticmethod
    def _random_crop(shape, rng):
        rows, columns = shape
        for _ in range(10):
            area = rows * columns * rng.uniform(0.08, 1.0)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < width <= columns and 0 < height <= rows:
                top = int(rng.integers(rows - height + 1))
                return top, int(rng.integers(columns - width + 1)), height, width
        return _centre_crop(shape, rng)


def _centre_crop(shape, _):
    side = max(round(min(shape) * 7 / 8), 1)
    return (shape[0] - side) // 2, (shape[1] - side) // 2, side, side


def _resize(image, height, width):
    shrink = height < image.shape[0] or width < image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )
