"""Transform the records of a source to rows of a batch, for detection and for classification."""

import dataclasses

import cv2
import numpy as np

from crnas_jax.data import masks
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_counts, check_length, check_positive

# Factors beyond these leave nothing of an image to learn from, or fill the memory.
_LEAST_JITTER, _MOST_JITTER = 0.05, 10.0


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """Resize rule: the shorter side becomes `min_size`, unless the longer would exceed `max_size`.

    Attributes:
      min_size: shorter side after resizing, in pixels.
      max_size: upper bound of the longer side after resizing, in pixels.
      multiple: number of pixels that divides the sides of the canvas: the coarsest stride of
        backbone and neck.

    Raises:
      UserError: a value is below 1, or `max_size` is less than `min_size`.
    """

    min_size: int
    max_size: int
    multiple: int = 32

    def __post_init__(self):
        check_counts(self, "min_size", "max_size", "multiple")
        if self.max_size < self.min_size:
            raise UserError(
                "ImageSize",
                "max_size",
                f"{self.max_size} is less than min_size, {self.min_size}",
                "give the longer side's bound",
            )

    def canvas(self, portrait: bool) -> tuple[int, int]:
        """Return the (height, width) in pixels that hold every image of an orientation."""
        sides = (self.min_size, self.max_size)
        shorter, longer = (-(-side // self.multiple) * self.multiple for side in sides)
        return (longer, shorter) if portrait else (shorter, longer)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of an image after resizing; keeps aspect to half a pixel."""
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


@dataclasses.dataclass(frozen=True)
class DetectionRows:
    """Make the rows of detection batches: resize with kept aspect, mirror, place on a canvas.

    With scale jitter an image larger than the canvas is cropped to it, and its boxes of which less
    than a pixel remains are left out.

    A row is a batch without the batch axis and without `weight`:
      `image`: canvas, uint8 [height, width, 3] RGB, black beyond the image.
      `image_size`: height and width of the resized image on the canvas, int32 [2].
      `original_size`: height and width of the image before resizing, int32 [2].
      `scale`: resized over original height and width, float32 [2].
      `image_id`: id of the image, int64.
      `boxes`: boxes in xyxy, pixels of the canvas, float32 [N, 4].
      `labels`: classes 1..C, int32 [N].
      `area`: areas from the annotations, square pixels of the original image, float32 [N].
      `valid`: whether an entry is an object rather than padding, bool [N].
      `crowd`: whether an object is a crowd, or ignored for another reason, bool [N].
      `masks`: masks cropped to their boxes, uint8 [N, M, M]; only if `mask_size` is not 0.

    Attributes:
      size: resize rule.
      max_objects: number N of entries; of more objects, N are drawn at random, crowds last.
      flip: whether half of the images are mirrored left to right.
      mask_size: side M of the masks in cells; 0 for no masks.
      scale_jitter: range of a random factor of the resized image's sides, within 0.05 to 10; ()
        for none.
    """

    size: ImageSize
    max_objects: int = 1
    flip: bool = False
    mask_size: int = 0
    scale_jitter: tuple[float, ...] = ()

    def __post_init__(self):
        check_length(self, "scale_jitter", 2, or_empty=True)
        check_positive(self, "scale_jitter")
        low, high = self.scale_jitter or (1.0, 1.0)
        if not _LEAST_JITTER <= low <= high <= _MOST_JITTER:
            remedy = f"give two factors of {_LEAST_JITTER:g} to {_MOST_JITTER:g}, the smaller first"
            raise UserError("DetectionRows", "scale_jitter", f"{self.scale_jitter}", remedy)

    def canvases(self, num_images: int, portrait: bool) -> np.ndarray:
        """Return the black canvases of a batch, uint8 [images, height, width, 3]."""
        return np.zeros((num_images, *self.size.canvas(portrait), 3), np.uint8)

    def __call__(
        self,
        record: dict,
        portrait: bool,
        rng: np.random.Generator,
        canvas: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Make the row of one record.

        Args:
          record: record of a `crnas_jax.data.source.DetectionSource`.
          portrait: whether the canvas is portrait, otherwise landscape.
          rng: generator of the random draws.
          canvas: one of `canvases`, to place the image on; a new one when None.
        """
        image, boxes = record["image"], record["boxes"]
        original = np.array(image.shape[:2], np.int32)
        flip = self.flip and rng.random() < 0.5
        height, width = self.size.resized(*original)
        canvas = self.canvases(1, portrait)[0] if canvas is None else canvas
        if self.scale_jitter:
            factor = rng.uniform(*self.scale_jitter)
            height, width = (max(int(side * factor + 0.5), 1) for side in (height, width))
        scale = np.array([height, width], np.float32) / original
        boxes = boxes * scale[[1, 0, 1, 0]]
        if height > canvas.shape[0] or width > canvas.shape[1]:
            resized = _resize(image, height, width)
            top, left = (
                int(rng.integers(max(side - room, 0) + 1))
                for side, room in zip((height, width), canvas.shape[:2], strict=True)
            )
            height, width = min(height, canvas.shape[0]), min(width, canvas.shape[1])
            inside = canvas[:height, :width]
            inside[:] = resized[top : top + height, left : left + width]
            record, boxes = _cropped(record, boxes, (left, top), (width, height), scale)
        else:
            inside = canvas[:height, :width]
            _resize(image, height, width, inside)
        if flip:
            cv2.flip(inside, 1, dst=inside)  # fifty times as fast as to copy NumPy's mirrored view
            boxes = np.stack(
                [width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1
            )

        num_objects = len(boxes)
        selected = np.arange(num_objects)
        if num_objects > self.max_objects:
            order = rng.permutation(num_objects)
            order = order[np.argsort(record["crowd"][order], kind="stable")]
            selected = order[: self.max_objects]

        def padded(values, dtype, shape=()):
            array = np.zeros((self.max_objects, *shape), dtype)
            array[: len(selected)] = values[selected]
            return array

        row = {
            "image": canvas,
            "image_size": np.array([height, width], np.int32),
            "original_size": original,
            "scale": scale.astype(np.float32),
            "image_id": record["image_id"],
            "boxes": padded(boxes, np.float32, (4,)),
            "labels": padded(record["labels"], np.int32),
            "area": padded(record["area"], np.float32),
            "valid": padded(np.ones(num_objects, bool), bool),
            "crowd": padded(record["crowd"], bool),
        }
        if self.mask_size:
            row["masks"] = self._masks(record, selected, flip)
        return row

    def _masks(self, record, selected, flip):
        """Crop the masks of the selected objects; those of crowds stay empty, being ignored."""
        crops = np.zeros((self.max_objects, self.mask_size, self.mask_size), np.uint8)
        for row, index in enumerate(selected):
            if not record["crowd"][index]:
                segmentation, box = record["segmentations"][index], record["boxes"][index]
                crops[row] = masks.crop(segmentation, box, self.mask_size)
        return crops[:, :, ::-1] if flip else crops


@dataclasses.dataclass(frozen=True)
class ClassificationRows:
    """Make the rows of classification batches: square crops.

    A row is a batch without the batch axis and without `weight`:
      `image`: crop, uint8 [size, size, 3] RGB.
      `image_size`: height and width of the crop, int32 [2].
      `image_id`: id of the image, int64.
      `label`: class 0..C-1, int32.

    Attributes:
      size: side of the crop in pixels.
      augment: whether crops have random area (8 to 100 % of the image), aspect ratio (3/4 to 4/3)
        and mirroring, as in Inception (arXiv 1409.4842, section 6); otherwise the crop is the
        centre, 7/8 of the shorter side.
    """

    size: int
    augment: bool

    def __call__(
        self, record: dict, portrait: bool, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Make the row of one record.

        Args:
          record: record of a `crnas_jax.data.source.ClassificationSource`.
          portrait: not used, since crops are square.
          rng: generator of the random draws.
        """
        del portrait
        image = record["image"]
        top, left, height, width = (self._random_crop if self.augment else _centre_crop)(
            image.shape[:2], rng
        )
        crop = _resize(image[top : top + height, left : left + width], self.size, self.size)
        if self.augment and rng.random() < 0.5:
            crop = cv2.flip(crop, 1)
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


def _cropped(record, boxes, corner, size, scale):
    """Return the record with the objects that a crop leaves, and their boxes in its pixels.

    The record's boxes become the part inside the crop, in pixels of the original image: masks are
    cut out of them.
    """
    offset, limit = np.tile(corner, 2), np.tile(size, 2)
    clipped = (boxes - offset).clip(0, limit)
    kept = ((clipped[:, 2:] - clipped[:, :2]) >= 1).all(1)
    record = {
        **record,
        "boxes": ((clipped + offset) / scale[[1, 0, 1, 0]])[kept],
        **{name: record[name][kept] for name in ("labels", "area", "crowd")},
    }
    if "segmentations" in record:
        pairs = zip(record["segmentations"], kept, strict=True)
        record["segmentations"] = [segmentation for segmentation, stays in pairs if stays]
    return record, clipped[kept]


def _centre_crop(shape, _):
    side = max(round(min(shape) * 7 / 8), 1)
    return (shape[0] - side) // 2, (shape[1] - side) // 2, side, side


def _resize(image, height, width, target=None):
    """Return the resized image; with `target`, a view of that size, it is written there."""
    shrink = height < image.shape[0] or width < image.shape[1]
    interpolation = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), dst=target, interpolation=interpolation)
