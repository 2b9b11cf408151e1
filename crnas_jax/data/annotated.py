"""What detection sources with stored images have in common, whatever their annotations lie in."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from crnas_jax.data import images, objects
from crnas_jax.data.orientation import SHOWN, Orientations
from crnas_jax.data.stored import StoredImage
from crnas_jax.errors import UserError

# Share of boxes out of their image above which the numbers may mean something else.
_MANY = 0.2
# Images whose headers are asked for at once: each takes a kilobyte while it waits.
_CHUNK = 1024


class AnnotatedImages:
    """Random access to stored images and their objects, most of a `source.DetectionSource`.

    A subclass reads its annotations in its constructor, sets the attributes `coco`, `category_ids`,
    `class_names`, `image_ids`, `sizes`, `image_names` and `digest` of the protocol, and the two
    below, and calls `_keep_usable`.

    Attributes:
      place: what names the annotations in messages.
      stored_images: the images.
      num_skipped_boxes: number of boxes left out because they have no size or lie entirely outside
        their image.
      num_clipped_boxes: number of boxes that extend beyond their image by more than a pixel; the
        part inside is used.
    """

    ignore_fields = ("iscrowd",)
    metrics = ("coco",)

    place: object
    stored_images: Sequence[StoredImage]
    sizes: np.ndarray
    image_ids: np.ndarray

    def __init__(self, strict: bool, with_masks: bool, exif: str, max_pixels: int):
        """Take the options that all layouts have; see `coco.CocoSource`."""
        self._strict, self._with_masks = strict, with_masks
        self._exif, self._max_pixels = exif, max_pixels
        self._num_16_bits = 0

    def _keep_usable(self, annotated: objects.Objects) -> np.ndarray:
        """Keep the objects with a part inside their image; return which, bool [objects].

        Raises:
          UserError: there are others, or boxes that reach out, and the data are to be strict.
        """
        placement = objects.place(annotated, self.sizes)
        is_empty, reaches_out = placement.is_empty, placement.reaches_out
        faulty = np.flatnonzero(is_empty | reaches_out)
        if self._strict and len(faulty):
            row = faulty[0]
            rows, columns = self.sizes[annotated.image[row]]
            raise self._fault_of_object(
                row,
                "bbox",
                f"{annotated.bbox[row].tolist()} "
                + ("has no size inside" if is_empty[row] else "reaches out of")
                + f" its image of {columns} x {rows} pixels",
                "correct it, or set data.strict=False to leave it out",
            )
        self.num_skipped_boxes = int(is_empty.sum())
        self.num_clipped_boxes = int((reaches_out & ~is_empty).sum())
        usable = ~is_empty
        self._objects = objects.ByImage(
            annotated.where(usable), placement.boxes[usable], len(self.image_ids)
        )
        return usable

    def _fault_of_object(self, row: int, field: str, problem: str, remedy: str) -> UserError:
        """Make the error about an annotated object."""
        raise NotImplementedError

    def _size_fault(self, index: int, height: int, width: int) -> UserError:
        """Make the error about an image of another size than is annotated."""
        raise NotImplementedError

    def _read(self, index: int) -> tuple[np.ndarray, images.Header, list | None]:
        """Return an image as it is stored, its header, and the masks of its usable objects."""
        raise NotImplementedError

    def check_images(self) -> None:
        """Check every image, and decide how those with an EXIF orientation are read.

        Raises:
          UserError: an image is missing, broken, or of another size than annotated; or nothing
            tells what the boxes on photographs with an orientation were drawn on.
        """
        _ = self._orientations.choice

    @functools.cached_property
    def _orientations(self) -> Orientations:
        turned, self._num_16_bits = {}, 0
        with ThreadPoolExecutor(16) as pool:
            for start in range(0, len(self), _CHUNK):
                rows = range(start, min(start + _CHUNK, len(self)))
                for row, header in zip(rows, pool.map(self._header, rows), strict=True):
                    self._num_16_bits += header.has_16_bits
                    if header.orientation != 1:
                        size = tuple(self.sizes[row].tolist())
                        turned[self.image_names[row]] = header, size
        return Orientations(self.place, self._exif, turned)

    def _header(self, index):
        header = self.stored_images[index].header(self._max_pixels)
        self._require_size(index, header)
        return header

    def _require_size(self, index, header):
        if tuple(self.sizes[index].tolist()) not in (header.stored_size, header.shown_size):
            raise self._size_fault(index, *header.stored_size)

    def notes(self) -> list[str]:
        """Say what of the split is left out, changed, or a choice: lines for the plan."""
        notes = []
        if self.num_skipped_boxes:
            notes.append(
                f"{self.num_skipped_boxes} boxes without size or outside their image are left out, "
                "in training and in evaluation (data.strict=True refuses them)"
            )
        if self.num_clipped_boxes:
            is_much = self.num_clipped_boxes > _MANY * len(self._objects.objects)
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
          UserError: the image is missing, broken, or of another size than annotated.
        """
        image, header, segmentations = self._read(index)
        self._require_size(index, header)
        if header.orientation != 1 and self._is_turned(header, self.sizes[index]):
            image = images.turn(image, header.orientation)
        record = {"image": image, "image_id": np.int64(self.image_ids[index])}
        record |= self._objects.record(index)
        if self._with_masks:
            record["segmentations"] = segmentations
        return record
