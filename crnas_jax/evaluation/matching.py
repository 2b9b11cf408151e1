"""COCO's matching of detections to ground truth, where the detections are: jitted, many at once.

pycocotools walks the detections of an image and class by descending score; each takes, of the
objects it overlaps enough and that are still free, the one it overlaps most, objects to be counted
before those to be ignored. Here all images of all subnets take that walk together, the ten IoU
thresholds as the bits of an integer, and only steps with something to decide are taken. IoUs are
float64, in pycocotools' order of operations: in float32 near-ties would fall otherwise than there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Area ranges all, small, medium, large in square pixels; both ends belong to a range.
AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
# Of an integer the lowest ten bits are the thresholds in the first area range, and so on.
EVERY_THRESHOLD = np.uint16(2 ** len(THRESHOLDS) - 1)
_AREA_SHIFTS = np.arange(len(AREAS), dtype=np.uint64) * np.uint64(len(THRESHOLDS))
_AREA_BITS = np.uint64(EVERY_THRESHOLD) << _AREA_SHIFTS
_EVERY_AREA = (np.uint64(1) << _AREA_SHIFTS).sum()
_ALL = _AREA_BITS.sum()
# Room for objects in an image of a call: powers of two, few programs for all mini-batches.
_LEAST_ROOM = 8


class GroundTruth:
    """The objects of a data set as arrays.

    Attributes:
      image_ids: ascending, int64 [images].
      classes: number of them; labels count from 1 in the order of category ids.
      counted: [images, classes, areas], objects that count (neither crowd nor out of the range).
    """

    def __init__(self, annotations: dict, set_apart: tuple[str, ...] = ("iscrowd",)):
        """Args: content of an annotation file; fields that mark an object to be ignored."""
        self.image_ids = np.unique([image["id"] for image in annotations["images"]])
        categories = sorted({category["id"] for category in annotations["categories"]})
        label_of = {category: label for label, category in enumerate(categories, 1)}
        self.classes = len(categories)
        rows = [
            (
                annotation["image_id"],
                label_of[annotation["category_id"]],
                any(annotation.get(field) for field in set_apart),
                annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]),
                *annotation["bbox"],
            )
            for annotation in annotations["annotations"]
        ]
        rows = np.array(rows, np.float64).reshape(-1, 8)
        images = np.array([one["image_id"] for one in annotations["annotations"]], np.int64)
        image = np.searchsorted(self.image_ids, images)
        order = np.argsort(image, kind="stable")
        self._rows, image = rows[order], image[order]
        self._starts = np.searchsorted(image, np.arange(len(self.image_ids) + 1))
        self.counted = np.zeros((len(self.image_ids), self.classes, len(AREAS)), np.int32)
        _, label, crowd, area = self._rows[:, :4].T
        for index, (low, high) in enumerate(AREAS):
            counts = (crowd == 0) & (area >= low) & (area <= high)
            np.add.at(self.counted[:, :, index], (image[counts], label[counts].astype(int) - 1), 1)

    @classmethod
    def of(cls, source) -> "GroundTruth":
        """For a split of a data set."""
        return cls(source.coco, source.set_apart)

    def numbers(self, image_ids) -> np.ndarray:
        """How many objects each of these images has."""
        index = np.searchsorted(self.image_ids, image_ids)
        return self._starts[index + 1] - self._starts[index]

    def counted_in(self, image_ids) -> np.ndarray:
        """Of these images, as `counted`."""
        return self.counted[np.searchsorted(self.image_ids, image_ids)]

    def batch(self, image_ids) -> dict[str, np.ndarray]:
        """What `match` wants to know of these images: arrays [images, room, ...].

        Raises:
          KeyError: an image that the annotations do not have.
        """
        index = np.searchsorted(self.image_ids, image_ids)
        known = self.image_ids[np.minimum(index, len(self.image_ids) - 1)]
        if (known != image_ids).any():
            raise KeyError(f"images {sorted(set(image_ids) - set(self.image_ids))[:3]}")
        most = max(int(self.numbers(image_ids).max(initial=0)), _LEAST_ROOM)
        room = 1 << (most - 1).bit_length()
        rows = np.zeros((len(index), room, 8))
        for place, image in enumerate(index):
            # Of equal overlaps the later object is taken: here, the earlier.
            own = self._rows[self._starts[image] : self._starts[image + 1]][::-1]
            rows[place, : len(own)] = own
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
    truth: dict[str, np.ndarray],
    scale=None,
    xywh: bool = False,
) -> dict[str, Array]:
    """What becomes of each detection at each threshold, for each area range.

    Args:
      boxes: float [subnets, images, n, 4] xyxy, best first.
      valid: bool [subnets, images, n], false where there is none.
      labels: int32 [subnets, images, n], from 1.
      truth: see `GroundTruth.batch`.
      scale: float32 [images, 2], what boxes are divided by (height, width) to be in the pixels of
        the annotations; 1 when None.
      xywh: boxes are COCO's (x, y, width, height), whose sides corners would round.

    Returns:
      `true` and `ignored`, uint16 [subnets, images, n, areas]: bit k for `THRESHOLDS[k]`, set where
      the detection takes an object that counts, or is not to be counted itself; `rank` int16
      [subnets, images, n], how many better ones of its class there are in the image.
    """
    if scale is None:
        scale = np.ones((boxes.shape[1], 2), np.float32)
    with jax.enable_x64(True):
        return _match(boxes, valid, labels, truth, scale, xywh)


@functools.partial(jax.jit, static_argnames="xywh")
def _match(boxes, valid, labels, truth, scale, xywh):
    subnets, images, number = valid.shape
    rows = subnets * images
    boxes = (boxes / scale[:, None, jnp.array([1, 0, 1, 0])]).astype(jnp.float64)
    if not xywh:
        boxes = jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)
    boxes, labels, valid = (leaf.reshape(rows, *leaf.shape[2:]) for leaf in (boxes, labels, valid))
    truth = jax.tree.map(lambda leaf: jnp.tile(leaf, (subnets, *[1] * (leaf.ndim - 1))), truth)

    # [rows, objects, detections]: reductions over objects then run along the many detections.
    same = labels[:, None, :] == truth["labels"][:, :, None]
    iou = jnp.where(same & valid[:, None, :], _iou(boxes, truth), -1.0)
    # Only detections that reach a threshold have anything to decide: each row's first, in order.
    decides = (iou >= THRESHOLDS[0]).any(1)
    place = jnp.where(decides, jnp.cumsum(decides, 1, dtype=jnp.int32) - 1, number)
    queue = jnp.zeros((rows, number), jnp.int32)
    queue = queue.at[jnp.arange(rows)[:, None], place].set(
        jnp.arange(number, dtype=jnp.int32), mode="drop"
    )
    steps = decides.sum(1, dtype=jnp.int32).max()
    counted = (truth["counted"] * _AREA_BITS).sum(-1)
    ranks, objects, reach = _candidates(iou)
    everything, every_row = jnp.arange(counted.shape[1]), jnp.arange(rows)

    def step(index, state):
        taken, found = state
        left = jnp.full(rows, _ALL)
        for kind in (0, 1):  # objects that count come first

            def candidate(rank, inner, kind=kind):
                taken, left, takes = inner
                object_ = objects[rank, every_row, queue[:, index]]
                free, counts = (
                    jnp.take_along_axis(leaf, object_[:, None], 1)[:, 0]
                    for leaf in (~taken, counted)
                )
                wants = reach[rank, every_row, queue[:, index]].astype(jnp.uint64) * _EVERY_AREA
                new = wants & (~counts if kind else counts) & free & left
                here = (everything == object_[:, None]) & ~truth["crowd"]  # a crowd stays free
                taken = jnp.where(here, taken | new[:, None], taken)
                return taken, left & ~new, takes | new

            none = jnp.zeros(rows, jnp.uint64)
            taken, left, takes = lax.fori_loop(0, ranks, candidate, (taken, left, none))
            found = found.at[kind, :, index].set(takes)
        return taken, found

    none = jnp.zeros((2, rows, number), jnp.uint64)
    taken = jnp.zeros(truth["labels"].shape, jnp.uint64)
    _, found = lax.fori_loop(0, steps, step, (taken, none))
    found = jnp.take_along_axis(found, place[None], 2, mode="clip")
    true, ignored = jnp.where(decides, found, jnp.uint64(0))
    area = (boxes[..., 2] * boxes[..., 3])[..., None]
    outside = (area < AREAS[:, 0]) | (area > AREAS[:, 1])
    ignored |= (outside * _AREA_BITS).sum(-1) & ~true

    def fields(lanes):
        return (lanes[..., None] >> _AREA_SHIFTS).astype(jnp.uint16) & EVERY_THRESHOLD

    earlier = jnp.triu(jnp.ones((number, number), bool), 1)
    better = earlier & (labels[:, :, None] == labels[:, None, :]) & valid[:, :, None]
    rank = better.sum(1, dtype=jnp.int16)
    found = {"true": fields(true), "ignored": fields(ignored), "rank": rank}
    return jax.tree.map(lambda leaf: leaf.reshape(subnets, images, *leaf.shape[1:]), found)


def _iou(boxes, truth):
    """pycocotools' IoU [rows, objects, detections]; of a crowd, over the detection's area."""
    x, y, width, height = jnp.moveaxis(boxes[:, None], -1, 0)
    own_x, own_y, own_width, own_height = jnp.moveaxis(truth["boxes"][:, :, None], -1, 0)
    across = jnp.minimum(x + width, own_x + own_width) - jnp.maximum(x, own_x)
    down = jnp.minimum(y + height, own_y + own_height) - jnp.maximum(y, own_y)
    inter = jnp.where((across > 0) & (down > 0), _product(across, down), 0.0)
    area = _product(width, height)
    union = area + _product(own_width, own_height) - inter
    union = jnp.where(truth["crowd"][:, :, None], area, union)
    return jnp.where(inter > 0, inter / union, 0.0)


def _product(first, second):
    """Rounded before it is added to anything: compilers contract a plain product and a sum, and the
    last bit decides ties at a threshold. Where a side is negative nothing overlaps.
    """
    return jnp.abs(first * second)


def _candidates(iou):
    """For each detection its objects by descending IoU, as far as one of them reaches a threshold.

    Returns:
      How many there are at most; the objects int32 [objects, rows, detections]; and which
      thresholds each of them reaches, bits, uint16 of the same shape.
    """
    rows, number, detections = iou.shape
    everything = jnp.arange(number, dtype=jnp.int32)[:, None]

    def pick(state):
        rank, iou, objects, reach = state
        value = iou.max(1)
        # The first of equals. XLA's argmax takes several times as long on a CPU.
        best = jnp.where(iou == value[:, None], everything, number).min(1)
        reaches = (
            (value >= min(threshold, 1 - 1e-10)).astype(jnp.uint16) << bit
            for bit, threshold in enumerate(THRESHOLDS)
        )
        objects = objects.at[rank].set(best)
        reach = reach.at[rank].set(functools.reduce(jnp.bitwise_or, reaches))
        return rank + 1, jnp.where(everything == best[:, None], -1.0, iou), objects, reach

    shape = (number, rows, detections)
    ranks, _, *found = lax.while_loop(
        lambda state: (state[0] < number) & (state[1] >= THRESHOLDS[0]).any(),
        pick,
        (0, iou, jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.uint16)),
    )
    return ranks, *found
