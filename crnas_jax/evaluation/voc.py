"""PASCAL VOC's average precision: 11-point (VOC 2007) and area under the curve (since VOC 2010)."""

import numpy as np


def voc_ap(
    annotations: dict,
    results: list[dict],
    iou: float = 0.5,
    eleven_point: bool = False,
    inclusive: bool = False,
) -> dict:
    """AP of every class, and their mean.

    Detections of a class go by descending score, equal ones in the order given. Each is compared
    with the ground truth of greatest IoU in its image alone: a true positive where the IoU is at
    least `iou` and no detection before took that ground truth. Ground truth flagged `difficult` or
    `iscrowd` is not counted, nor are the detections it is the best match of.

    Args:
      annotations: content of a COCO annotation file, or `VocSource.coco`.
      results: see `crnas_jax.evaluation.coco.to_results`; boxes are [x, y, width, height] in pixels
        of the original images.
      iou: threshold.
      eleven_point: mean precision at the recalls 0, 0.1, ..., 1 instead of the area.
      inclusive: boxes are [xmin, ymin, xmax - xmin, ymax - ymin] of pixels that both belong to the
        box, so that sides are one longer. Not for `VocSource.coco`, whose boxes have full sides.

    Returns:
      `AP`, and `per_class` by class name, fractions. A class without ground truth is NaN and left
      out of the mean.

    Raises:
      ValueError: a result is of an image or a category that the annotations do not have.

    References:
      Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015.
    """
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    images = {image["id"] for image in annotations["images"]}
    for entry in results:
        if entry["image_id"] not in images or entry["category_id"] not in names:
            raise ValueError(f"no such image or category in the annotations: {entry}")
    truths, detections = (
        _arrays(entries, inclusive) for entries in (annotations["annotations"], results)
    )
    scores = np.array([entry["score"] for entry in results], float)
    left_out = [
        bool(entry.get("difficult") or entry.get("iscrowd")) for entry in annotations["annotations"]
    ]
    left_out = np.array([*left_out, False])  # the last for detections without a match, -1
    per_class = {}
    for category in sorted(names):
        (own,) = np.nonzero(truths["category"] == category)
        (found,) = np.nonzero(detections["category"] == category)
        found = found[np.argsort(-scores[found], kind="stable")]
        best = _best_truths(truths, own, detections, found, iou)
        # The first of the detections that share a best ground truth takes it.
        _, first = np.unique(best, return_index=True)
        true = np.zeros(len(found), bool)
        true[first] = True
        true &= best >= 0
        positives = int(np.sum(~left_out[own]))
        per_class[names[category]] = _ap(true[~left_out[best]], positives, eleven_point)
    values = [value for value in per_class.values() if not np.isnan(value)]
    return {"AP": float(np.mean(values)) if values else float("nan"), "per_class": per_class}


def _arrays(entries, inclusive):
    """Images and categories int64 [n], boxes float64 [n, 4] xyxy."""
    boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + inclusive
    return {
        "image": np.array([entry["image_id"] for entry in entries], np.int64),
        "category": np.array([entry["category_id"] for entry in entries], np.int64),
        "boxes": boxes,
    }


def _best_truths(truths, own, detections, found, iou):
    """For each detection `found`, the one of `own` it is compared with; -1 below the threshold."""
    best = np.full(len(found), -1)
    truths_of = _by_image(truths["image"][own])
    for image, rows in _by_image(detections["image"][found]).items():
        if image in truths_of:
            columns = own[truths_of[image]]
            overlaps = _iou(detections["boxes"][found[rows]], truths["boxes"][columns])
            greatest = overlaps.argmax(1)
            enough = overlaps[np.arange(len(rows)), greatest] >= iou
            best[rows] = np.where(enough, columns[greatest], -1)
    return best


def _by_image(images):
    """Indices of the entries of each image, ascending."""
    order = np.argsort(images, kind="stable")
    unique, starts = np.unique(images[order], return_index=True)
    return dict(zip(unique.tolist(), np.split(order, starts[1:]), strict=False))


def _iou(boxes, others):
    """[n, m] of xyxy boxes [n, 4] and [m, 4]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, others))
    return shared / np.maximum(areas[:, None] + other_areas - shared, np.spacing(1))


def _ap(true, positives, eleven_point):
    """From true (or else false) positives in order of score."""
    if not positives:
        return float("nan")
    hits = np.cumsum(true)
    recall, precision = hits / positives, hits / np.arange(1, len(true) + 1)
    # The greatest precision at this recall or beyond; none beyond the last.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if eleven_point:
        # In floats, as everybody's tables are: 0.6000000000000001 misses a recall of 9 / 15.
        at = np.searchsorted(recall, np.linspace(0, 1, 11), side="left")
        return float(envelope[at].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1]))
