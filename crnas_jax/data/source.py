"""Data-source protocols: what training, search and evaluation ask of a data set.

To add a data set in a layout of one's own, write a class with the members of `DetectionSource` (or
`ClassificationSource`); it needs no base class and no registration. An instance is one split: it
can be passed to every function that takes a source. For use from a config file, give the layout a
name in `crnas_jax/data/build.py`, the only place that chooses between sources. A data set that can
be expressed as the content of a COCO annotation file needs least code as a subclass of
`crnas_jax.data.coco.CocoSource`, as `crnas_jax.data.voc.VocSource` shows.

`isinstance(source, DetectionSource)` tells whether all members are there; types and shapes are not
checked by it. Labels count from 1 in detection, where 0 is the background, and from 0 in
classification. Records are read by several threads at once, so `__getitem__` must not change the
source.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from crnas_jax.data.stored import StoredImage


@runtime_checkable
class DetectionSource(Protocol):
    """Random access to the images and objects of one split of a detection data set.

    Attributes:
      coco: content of a COCO annotation file: `images` (`id`, `height`, `width`, `file_name`),
        `annotations` (`id`, `image_id`, `category_id`, `bbox` as [x, y, width, height] in pixels,
        `area` in square pixels, the fields of `ignore_fields`, `segmentation` where masks are
        evaluated) and `categories` (`id`, `name`). AP is computed against it, never against
        batches.
      category_ids: ids in `coco` of the labels 1..C, in ascending order.
      class_names: names of the labels 1..C, in the same order.
      image_ids: ids in `coco` of the images, int64 [images].
      sizes: heights and widths of the images in pixels, int32 [images, 2]; they decide which
        images are portrait.
      image_names: names that tell the images of different splits apart: two splits must not have
        one in common.
      stored_images: the encoded images, by which duplicates between splits are looked for; empty
        for generated images.
      digest: text that changes whenever the annotations change; results that were computed from
        other data are not resumed.
      ignore_fields: annotation fields that mark an object as no ground truth in training and as
        ignored in evaluation, such as `iscrowd`.
      metrics: names of the metric families that the evaluation computes: "coco", and "voc" for
        PASCAL VOC's own AP.
    """

    coco: dict[str, Any]
    category_ids: list[int]
    class_names: list[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    image_names: list[str]
    digest: str
    ignore_fields: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def stored_images(self) -> Sequence[StoredImage]:
        """The encoded images; empty for generated images."""

    def notes(self) -> list[str]:
        """Return lines for the plan of a run: what of the split is left out, changed or chosen."""

    def check_images(self) -> None:
        """Check that all image files can be used; do nothing for generated images.

        Raises:
          UserError: an image file is missing, broken, or of another size than in `sizes`; the first
            such file is named.
        """

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one image and its objects.

        Args:
          index: position of the image in `image_ids`.

        Returns:
          The record of the image:
            `image`: pixels, uint8 [height, width, 3] RGB.
            `image_id`: id in `coco`, int64 scalar.
            `boxes`: boxes in xyxy, pixels of the image, float32 [n, 4], inside the image and with
              both sides above 0.
            `labels`: classes 1..C, int32 [n].
            `area`: areas of the objects in square pixels, float32 [n].
            `crowd`: whether one of `ignore_fields` is set, bool [n].
            `segmentations`: list of n polygon lists or run-length codes in COCO's format; only if
              masks are trained.

        Raises:
          UserError: the image is missing, broken, or of another size than in `sizes`.
        """


@runtime_checkable
class ClassificationSource(Protocol):
    """Random access to the labelled images of one split of a classification data set.

    Attributes:
      class_names: names of the labels 0..C-1.
      sizes: heights and widths that decide which images are portrait, int32 [images, 2]; ones if
        crops are square, so that all images share one canvas.
      digest: text that changes whenever the data set changes; results that were computed from other
        data are not resumed.
    """

    class_names: list[str]
    sizes: np.ndarray
    digest: str

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one image.

        Args:
          index: position of the image.

        Returns:
          The record of the image:
            `image`: pixels, uint8 [height, width, 3] RGB.
            `image_id`: number that is unique within the split, int64 scalar.
            `label`: class 0..C-1, integer.

        Raises:
          UserError: the image is missing or broken.
        """


def objects_record(image_id: int, objects: list[tuple]) -> dict[str, np.ndarray]:
    """Return the objects of an image as the arrays of a record.

    Args:
      image_id: id of the image.
      objects: tuples that begin with (xyxy box in pixels, label, area in square pixels, crowd).

    Returns:
      `image_id` int64, `boxes` float32 [n, 4], `labels` int32 [n], `area` float32 [n], `crowd` bool
      [n].
    """
    return {
        "image_id": np.int64(image_id),
        "boxes": np.array([box for box, *_ in objects], np.float32).reshape(-1, 4),
        "labels": np.array([label for _, label, *_ in objects], np.int32),
        "area": np.array([area for _, _, area, *_ in objects], np.float32),
        "crowd": np.array([crowd for _, _, _, crowd, *_ in objects], bool),
    }
