"""The annotated objects of a split as columns: a tenth of the memory of one dict for each."""

import dataclasses

import numpy as np

# COCO's metrics do not count objects of this area or more, in square pixels.
MAX_AREA = 1e10
# Pixels by which a box may reach out of its image without being counted as such.
_MARGIN = 1


@dataclasses.dataclass(frozen=True)
class Objects:
    """Annotated objects, a row for each in the order of the annotations.

    Attributes:
      image: positions of their images in the split, int32 [objects].
      label: classes 1..C, int32 [objects].
      bbox: x, y, width and height as annotated, pixels, float64 [objects, 4].
      area: areas in square pixels, float64 [objects].
      crowd: whether an object is no ground truth in training and ignored in evaluation, bool
        [objects].
    """

    image: np.ndarray
    label: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def from_table(cls, table: np.ndarray) -> "Objects":
        """Take the columns from float64 [objects, 8].

        These are image, label, area, crowd, x, y, width, height.
        """
        image, label, area, crowd = table[:, :4].T
        return cls(
            image.astype(np.int32), label.astype(np.int32), table[:, 4:], area, crowd.astype(bool)
        )

    def where(self, mask: np.ndarray) -> "Objects":
        """Return the objects that a mask or an array of positions selects."""
        columns = (getattr(self, field.name)[mask] for field in dataclasses.fields(self))
        return Objects(*columns)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the boxes of objects lie in their images.

    Attributes:
      boxes: the parts inside, xyxy in pixels, float32 [objects, 4].
      is_empty: whether nothing of a box is inside, or it has no size, bool [objects].
      reaches_out: whether a box extends beyond its image by more than a pixel, bool [objects].
    """

    boxes: np.ndarray
    is_empty: np.ndarray
    reaches_out: np.ndarray


def place(objects: Objects, sizes: np.ndarray) -> Placement:
    """Clip the boxes of objects to their images.

    Args:
      objects: the objects.
      sizes: heights and widths of all images, pixels, int32 [images, 2].
    """
    rows, columns = sizes[objects.image].astype(np.float64).T
    x, y, width, height = objects.bbox.T
    # Batches hold float32, in which a box with a size in float64 may have none.
    boxes = np.stack(
        [
            np.maximum(x, 0),
            np.maximum(y, 0),
            np.minimum(x + width, columns),
            np.minimum(y + height, rows),
        ],
        axis=1,
    ).astype(np.float32)
    has_size = (width > 0) & (height > 0)
    is_inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    beyond = np.max([-x, -y, x + width - columns, y + height - rows], axis=0, initial=-np.inf)
    return Placement(boxes, ~(has_size & is_inside), beyond > _MARGIN)


def known_areas(objects: Objects) -> np.ndarray:
    """Return the areas, those of 0 replaced by the boxes'.

    Some tools write 0 for unknown, and AP by size would go by it.
    """
    width, height = np.maximum(objects.bbox[:, 2:], 0).T
    return np.where(objects.area == 0, width * height, objects.area)


class ByImage:
    """Objects that can be used, found by their image.

    Attributes:
      objects: the objects, float32 boxes beside them.
      boxes: their boxes inside the images, xyxy in pixels, float32 [objects, 4].
    """

    def __init__(self, objects: Objects, boxes: np.ndarray, num_images: int):
        """Sort the objects by image; those of one image keep their order."""
        self.objects, self.boxes = objects, boxes
        self._order = np.argsort(objects.image, kind="stable")
        images = np.arange(num_images + 1)
        self._starts = np.searchsorted(objects.image[self._order], images)

    def rows(self, image: int) -> np.ndarray:
        """Return the positions of an image's objects in `objects`."""
        return self._order[self._starts[image] : self._starts[image + 1]]

    def record(self, image: int) -> dict[str, np.ndarray]:
        """Return the objects of an image as the arrays of a record (`source.DetectionSource`)."""
        rows = self.rows(image)
        return {
            "boxes": self.boxes[rows],
            "labels": self.objects.label[rows],
            "area": self.objects.area[rows].astype(np.float32),
            "crowd": self.objects.crowd[rows],
        }
