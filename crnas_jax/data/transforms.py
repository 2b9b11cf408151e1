"""From a record to a row of a batch: resize with kept aspect, flip, place on a fixed canvas."""

import dataclasses

import cv2
import numpy as np

# Canvas sides are multiples of the coarsest backbone stride.
_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class ImageSize:
    """The shorter side becomes `short` pixels, unless the longer would exceed `long`."""

    short: int
    long: int

    def canvas(self, portrait: bool) -> tuple[int, int]:
        """(height, width) that hold every image of the orientation."""
        short, long = (-(-side // _MULTIPLE) * _MULTIPLE for side in (self.short, self.long))
        return (long, short) if portrait else (short, long)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an image after resizing, aspect kept to half a pixel."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def batch_row(
    record: dict,
    size: ImageSize,
    portrait: bool,
    flip: bool,
    max_objects: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """One row of the batch contract, without the batch axis and `weight`.

    Args:
      record: of a source.
      size: resizing rule.
      portrait: which canvas.
      flip: mirror the image left to right.
      max_objects: N of the contract; of more, N are drawn, crowds last.
      rng: of the draw.
    """
    image, boxes = record["image"], record["boxes"]
    original = np.array(image.shape[:2], np.int32)
    height, width = size.resized(*original)
    shrink = height < original[0] or width < original[1]
    image = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    )
    scale = np.array([height, width], np.float32) / original
    boxes = boxes * scale[[1, 0, 1, 0]]
    if flip:
        image = image[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    canvas = np.zeros((*size.canvas(portrait), 3), np.uint8)
    canvas[:height, :width] = image

    number = len(boxes)
    kept = np.arange(number)
    if number > max_objects:
        drawn = rng.permutation(number)
        kept = drawn[np.argsort(record["crowd"][drawn], kind="stable")][:max_objects]

    def padded(values, dtype, shape=()):
        out = np.zeros((max_objects, *shape), dtype)
        out[: len(kept)] = values[kept]
        return out

    return {
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
