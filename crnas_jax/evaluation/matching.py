"""COCO matching of detections to ground truth as one jitted function on arrays.

pycocotools goes through the detections of an image and class by descending score. Each detection
takes the object with the largest IoU among the objects that are still free and that it overlaps
enough, and objects that count come before ignored ones. Here all images of all subnets are matched
together, the ten IoU thresholds are the bits of one integer, and detections that reach no threshold
are skipped. IoUs are float64 and follow the order of operations in pycocotools, because float32
would decide near-ties differently.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from crnas_jax.parallel import hosts

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Area ranges all, small, medium, large in square pixels. Both ends belong to a range.
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
# The lowest ten bits of an integer are the thresholds in the first area range, the next ten those
# in the second, and so on.
EVERY_THRESHOLD = np.uint16(2 ** len(THRESHOLDS) - 1)
_AREA_SHIFTS = np.arange(len(AREAS), dtype=np.uint64) * np.uint64(len(THRESHOLDS))
_AREA_BITS = np.uint64(EVERY_THRESHOLD) << _AREA_SHIFTS
_EVERY_AREA = (np.uint64(1) << _AREA_SHIFTS).sum()
_ALL_BITS = _AREA_BITS.sum()
# Object slots for each image of a call are powers of two from here on, so that few programs serve
# all mini-batches.
_MIN_SLOTS = 8


class GroundTruth:
    """The objects of a data set as arrays.

    Attributes:
      image_ids: ascending image ids, int64 [images].
      num_classes: number of classes; labels count from 1 in the order of category ids.
      num_counted: number of objects that count (not ignored, and with an area inside the range),
        int32 [images, classes, areas].
    """

    def __init__(self, annotations: dict, ignore_fields: tuple[str, ...] = ("iscrowd",)):
        """Build the arrays from the content of an annotation file.

        Args:
          annotations: content of a COCO annotation file.
          ignore_fields: annotation fields that mark an object as ignored.
        """
        self.image_ids = np.unique([image["id"] for image in annotations["images"]])
        categories = sorted({category["id"] for category in annotations["categories"]})
        label_of_category = {category: label for label, category in enumerate(categories, 1)}
        self.num_classes = len(categories)
        rows = [
            (
                annotation["image_id"],
                label_of_category[annotation["category_id"]],
                any(annotation.get(field) for field in ignore_fields),
                annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
                *annotation["bbox"],
            )
            for annotation in annotations["annotations"]
        ]
        rows = np.array(rows, np.float64).reshape(-1, 8)
        image_ids = [annotation["image_id"] for annotation in annotations["annotations"]]
        image = np.searchsorted(self.image_ids, np.array(image_ids, np.int64))
        order = np.argsort(image, kind="stable")
        self._rows, image = rows[order], image[order]
        self._starts = np.searchsorted(image, np.arange(len(self.image_ids) + 1))
        shape = (len(self.image_ids), self.num_classes, len(AREAS))
        self.num_counted = np.zeros(shape, np.int32)
        _, label, crowd, area = self._rows[:, :4].T
        for index, (low, high) in enumerate(AREAS):
            counts = (crowd == 0) & (area >= low) & (area <= high)
            where = image[counts], label[counts].astype(int) - 1
            np.add.at(self.num_counted[:, :, index], where, 1)

    @classmethod
    def from_source(cls, source) -> "GroundTruth":
        """Build the arrays from one split of a data set."""
        return cls(source.coco, source.ignore_fields)

    def objects_per_image(self, image_ids) -> np.ndarray:
        """Return the number of objects in each of these images, ignored ones included, [images]."""
        index = np.searchsorted(self.image_ids, image_ids)
        return self._starts[index + 1] - self._starts[index]

    def num_counted_in(self, image_ids) -> np.ndarray:
        """Return the rows of `num_counted` for these images, [images, classes, areas]."""
        return self.num_counted[np.searchsorted(self.image_ids, image_ids)]

    def batch(self, image_ids) -> dict[str, np.ndarray]:
        """Return the objects of these images, padded to a common number, as `match` takes them.

        Args:
          image_ids: ids of the images, int64 [images].

        Returns:
          `boxes` float64 [images, slots, 4], COCO's (x, y, width, height) in pixels of the
          annotations; `labels` int32 [images, slots], 0 in empty slots; `crowd` bool
          [images, slots], ignored objects; `counted` bool [images, slots, areas], objects that
          count in each area range.

        Raises:
          KeyError: an image that the annotations do not have.
        """
        index = np.searchsorted(self.image_ids, image_ids)
        known = self.image_ids[np.minimum(index, len(self.image_ids) - 1)]
        if (known != image_ids).any():
            raise KeyError(f"images {sorted(set(image_ids) - set(self.image_ids))[:3]}")
        max_objects = max(int(self.objects_per_image(image_ids).max(initial=0)), _MIN_SLOTS)
        num_slots = 1 << (max_objects - 1).bit_length()
        rows = np.zeros((len(index), num_slots, 8))
        for place, image in enumerate(index):
            # pycocotools takes the later of two objects with equal IoU and `match` the earlier, so
            # the objects are reversed.
            objects = self._rows[self._starts[image] : self._starts[image + 1]][::-1]
            rows[place, : len(objects)] = objects
        _, label, crowd, area = np.moveaxis(rows[..., :4], -1, 0)
        inside = (area[..., None] >= AREAS[:, 0]) & (area[..., None] <= AREAS[:, 1])
        return {
            "boxes": rows[..., 4:],
            "labels": label.astype(np.int32),
            "crowd": crowd > 0,
            "counted": inside & (crowd == 0)[..., None],
        }


def match(
    boxes: Array,
    valid: Array,
    labels: Array,
    ground_truth: dict[str, np.ndarray],
    scale=None,
    xywh: bool = False,
) -> dict[str, Array]:
    """Match detections to ground truth at every IoU threshold and in every area range.

    Args:
      boxes: boxes in xyxy, best first, float [subnets, images, n, 4].
      valid: bool [subnets, images, n], false in padded entries.
      labels: labels from 1, int32 [subnets, images, n].
      ground_truth: objects of the images, from `GroundTruth.batch`.
      scale: factors (height, width) from pixels of the annotations to pixels of the boxes, float32
        [images, 2]; boxes are divided by them; 1 when None.
      xywh: whether boxes are COCO's (x, y, width, height); converting those to corners would round
        their sides.

    Returns:
      `true` and `ignored`, uint16 [subnets, images, n, areas]: bit k belongs to `THRESHOLDS[k]` and
      is set in `true` where the detection takes an object that counts, in `ignored` where the
      detection itself does not count. `rank`, int16 [subnets, images, n]: number of better
      detections of the same class in the image.
    """
    if scale is None:
        scale = np.ones((boxes.shape[1], 2), np.float32)
    with jax.enable_x64(True):
        return _match(boxes, valid, labels, ground_truth, scale, xywh)


@functools.partial(hosts.jit, static_argnames="xywh")
def _match(boxes, valid, labels, ground_truth, scale, xywh):
    num_subnets, num_images, num_detections = valid.shape
    num_rows = num_subnets * num_images
    boxes = (boxes / scale[None, :, None, jnp.array([1, 0, 1, 0])]).astype(jnp.float64)
    if not xywh:
        boxes = jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
    boxes, labels, valid = (
        leaf.reshape(num_rows, *leaf.shape[2:]) for leaf in (boxes, labels, valid)
    )
    objects = jax.tree.map(
        lambda leaf: jnp.tile(leaf, (num_subnets, *[1] * (leaf.ndim - 1))), ground_truth
    )

    # Arrays are [rows, objects, detections], so that reductions over objects run along the many
    # detections.
    same_class = labels[:, None, :] == objects["labels"][:, :, None]
    iou = jnp.where(same_class & valid[:, None, :], _iou(boxes, objects), -1.0)
    # Only detections that reach a threshold can take an object. The queue of a row holds these.
    in_queue = (iou >= THRESHOLDS[0]).any(1)
    place = jnp.where(in_queue, jnp.cumsum(in_queue, 1, dtype=jnp.int32) - 1, num_detections)
    queue = jnp.zeros((num_rows, num_detections), jnp.int32)
    queue = queue.at[jnp.arange(num_rows)[:, None], place].set(
        jnp.arange(num_detections, dtype=jnp.int32)[None], mode="drop"
    )
    num_steps = in_queue.sum(1, dtype=jnp.int32).max()
    counted = (objects["counted"] * _last_axis(_AREA_BITS, 3)).sum(-1)
    num_ranks, candidates, reach = _rank_candidates(iou)
    slots, rows = jnp.arange(counted.shape[1]), jnp.arange(num_rows)

    def match_next(index, state):
        taken, matches = state
        remaining = jnp.full(num_rows, _ALL_BITS)
        for kind in (0, 1):  # objects that count come before ignored ones

            def try_candidate(rank, inner, kind=kind):
                taken, remaining, matched = inner
                slot = candidates[rank, rows, queue[:, index]]
                free, counts = (
                    jnp.take_along_axis(leaf, slot[:, None], 1)[:, 0] for leaf in (~taken, counted)
                )
                wanted = reach[rank, rows, queue[:, index]].astype(jnp.uint64) * _EVERY_AREA
                new = wanted & (~counts if kind else counts) & free & remaining
                # A crowd may be taken by any number of detections.
                is_taken = (slots[None] == slot[:, None]) & ~objects["crowd"]
                taken = jnp.where(is_taken, taken | new[:, None], taken)
                return taken, remaining & ~new, matched | new

            no_bits = jnp.zeros(num_rows, jnp.uint64)
            taken, remaining, matched = lax.fori_loop(
                0, num_ranks, try_candidate, (taken, remaining, no_bits)
            )
            matches = matches.at[kind, :, index].set(matched)
        return taken, matches

    no_matches = jnp.zeros((2, num_rows, num_detections), jnp.uint64)
    none_taken = jnp.zeros(objects["labels"].shape, jnp.uint64)
    _, matches = lax.fori_loop(0, num_steps, match_next, (none_taken, no_matches))
    matches = jnp.take_along_axis(matches, place[None], 2, mode="clip")
    true, ignored = jnp.where(in_queue[None], matches, jnp.uint64(0))
    area = (boxes[..., 2] * boxes[..., 3])[..., None]
    outside = (area < _last_axis(AREAS[:, 0], 3)) | (area > _last_axis(AREAS[:, 1], 3))
    ignored |= (outside * _last_axis(_AREA_BITS, 3)).sum(-1) & ~true

    def split_areas(bits):
        shifted = bits[..., None] >> _last_axis(_AREA_SHIFTS, 3)
        return shifted.astype(jnp.uint16) & EVERY_THRESHOLD

    earlier = jnp.triu(jnp.ones((num_detections, num_detections), bool), 1)
    better = earlier[None] & (labels[:, :, None] == labels[:, None, :]) & valid[:, :, None]
    rank = better.sum(1, dtype=jnp.int16)
    matches = {"true": split_areas(true), "ignored": split_areas(ignored), "rank": rank}
    return jax.tree.map(
        lambda leaf: leaf.reshape(num_subnets, num_images, *leaf.shape[1:]), matches
    )


def _last_axis(vector, ndim):
    """Return the vector with `ndim` axes, all but the last of length 1."""
    return jnp.expand_dims(vector, tuple(range(ndim - 1)))


def _iou(boxes, objects):
    """Return pycocotools' IoU [rows, objects, detections].

    The IoU with a crowd is the intersection over the detection's area.
    """
    x, y, width, height = jnp.moveaxis(boxes[:, None], -1, 0)
    object_x, object_y, object_width, object_height = jnp.moveaxis(
        objects["boxes"][:, :, None], -1, 0
    )
    across = jnp.minimum(x + width, object_x + object_width) - jnp.maximum(x, object_x)
    down = jnp.minimum(y + height, object_y + object_height) - jnp.maximum(y, object_y)
    inter = jnp.where((across > 0) & (down > 0), _rounded_product(across, down), 0.0)
    area = _rounded_product(width, height)
    union = area + _rounded_product(object_width, object_height) - inter
    union = jnp.where(objects["crowd"][:, :, None], area, union)
    return jnp.where(inter > 0, inter / union, 0.0)


def _rounded_product(first, second):
    """Return the absolute product, rounded before anything is added to it.

    Compilers contract a plain product and a sum into one operation, and the last bit decides ties
    at a threshold. The sign does not matter: boxes with a negative side overlap nothing.
    """
    return jnp.abs(first * second)


def _rank_candidates(iou):
    """Sort the objects of each detection by descending IoU, until no object reaches a threshold.

    Args:
      iou: IoUs, -1 where a pair cannot match, float64 [rows, objects, detections].

    Returns:
      The largest number of candidates of a detection; the objects by rank, int32 [objects, rows,
      detections]; and the bits of the thresholds that each of them reaches, uint16 of the same
      shape.
    """
    num_rows, num_objects, num_detections = iou.shape
    indices = jnp.arange(num_objects, dtype=jnp.int32)[None, :, None]

    def pick_largest(state):
        rank, iou, candidates, reach = state
        largest = iou.max(1)
        # The first of equal values, as argmax gives it. XLA's argmax takes several times as long on
        # a CPU.
        best = jnp.where(iou == largest[:, None], indices, num_objects).min(1)
        reached = (
            (largest >= min(threshold, 1 - 1e-10)).astype(jnp.uint16) << bit
            for bit, threshold in enumerate(THRESHOLDS)
        )
        candidates = candidates.at[rank].set(best)
        reach = reach.at[rank].set(functools.reduce(jnp.bitwise_or, reached))
        return rank + 1, jnp.where(indices == best[:, None], -1.0, iou), candidates, reach

    shape = (num_objects, num_rows, num_detections)
    num_ranks, _, candidates, reach = lax.while_loop(
        lambda state: (state[0] < num_objects) & (state[1] >= THRESHOLDS[0]).any(),
        pick_largest,
        (0, iou, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.uint16)),
    )
    return num_ranks, candidates, reach
