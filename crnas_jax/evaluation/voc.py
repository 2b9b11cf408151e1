"""PASCAL VOC's average precision: 11-point (VOC 2007) and area under the curve (since VOC 2010)."""

import numpy as np


def voc_ap(
    annotations: dict,
    results: list[dict],
    iou: float = 0.5,
    eleven_point: bool = False,
    inclusive: bool = False,
) -> dict:
    """Return the AP of every class and its mean over classes.

    Detections of a class go by descending score, equal scores in the order given. Each detection is
    compared only with the object of largest IoU in its image. It is a true positive where the IoU
    is at least `iou` and no earlier detection took that object. Objects flagged `difficult` or
    `iscrowd` are not counted, nor are the detections that they match best.

    Args:
      annotations: content of a COCO annotation file, or `VocSource.coco`.
      results: detections in COCO's result format (see `crnas_jax.evaluation.coco.to_results`),
        boxes as [x, y, width, height] in pixels of the original images.
      iou: smallest IoU of a true positive.
      eleven_point: whether AP is the mean precision at the recalls 0, 0.1, ..., 1 instead of the
        area under the curve.
      inclusive: whether boxes are [xmin, ymin, xmax - xmin, ymax - ymin] with both end pixels
        inside the box, so that sides are one pixel longer. Boxes of `VocSource.coco` have full
        sides already and need False.

    Returns:
      `AP`, and `per_class`, AP by class name, as fractions. A class without objects is NaN and left
      out of the mean.

    Raises:
      ValueError: a result names an image or a category that the annotations do not have.

    References:
      Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective, IJCV 2015.
    """
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    image_ids = {image["id"] for image in annotations["images"]}
    for entry in results:
        if entry["image_id"] not in image_ids or entry["category_id"] not in names:
            raise ValueError(f"no such image or category in the annotations: {entry}")
    objects, detections = (
        _arrays(entries, inclusive) for entries in (annotations["annotations"], results)
    )
    scores = np.array([entry["score"] for entry in results], float)
    ignored = [
        bool(entry.get("difficult") or entry.get("iscrowd")) for entry in annotations["annotations"]
    ]
    ignored = np.array([*ignored, False])  # the last entry is for unmatched detections, index -1
    per_class = {}
    for category in sorted(names):
        (object_rows,) = np.nonzero(objects["category"] == category)
        (rows,) = np.nonzero(detections["category"] == category)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        best = _best_objects(objects, object_rows, detections, rows, iou)
        # The first of the detections with the same best object takes it.
        _, first = np.unique(best, return_index=True)
        true = np.zeros(len(rows), bool)
        true[first] = True
        true &= best >= 0
        num_objects = int(np.sum(~ignored[object_rows]))
        per_class[names[category]] = _ap(true[~ignored[best]], num_objects, eleven_point)
    values = [value for value in per_class.values() if not np.isnan(value)]
    return {"AP": float(np.mean(values)) if values else float("nan"), "per_class": per_class}


def _arrays(entries, inclusive):
    """Return images and categories int64 [n], and boxes in xyxy, float64 [n, 4]."""
    boxes = np.array([entry["bbox"] for entry in entries], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] + inclusive
    return {
        "image": np.array([entry["image_id"] for entry in entries], np.int64),
        "category": np.array([entry["category_id"] for entry in entries], np.int64),
        "boxes": boxes,
    }


def _best_objects(objects, object_rows, detections, rows, min_iou):
    """Return the object that each detection is compared with, -1 below the threshold.

    Args:
      objects: all objects, from `_arrays`.
      object_rows: indices of the objects of the class.
      detections: all detections, from `_arrays`.
      rows: indices of the detections of the class.
      min_iou: threshold of the IoU.
    """
    best = np.full(len(rows), -1)
    objects_by_image = _by_image(objects["image"][object_rows])
    for image, places in _by_image(detections["image"][rows]).items():
        if image in objects_by_image:
            candidates = object_rows[objects_by_image[image]]
            iou = _iou(detections["boxes"][rows[places]], objects["boxes"][candidates])
            largest = iou.argmax(1)
            enough = iou[np.arange(len(places)), largest] >= min_iou
            best[places] = np.where(enough, candidates[largest], -1)
    return best


def _by_image(images):
    """Return the ascending indices of the entries of each image, by image."""
    order = np.argsort(images, kind="stable")
    unique, starts = np.unique(images[order], return_index=True)
    return dict(zip(unique.tolist(), np.split(order, starts[1:]), strict=False))


def _iou(boxes, other_boxes):
    """Return IoUs [n, m] of boxes [n, 4] and [m, 4] in xyxy."""
    low = np.maximum(boxes[:, None, :2], other_boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], other_boxes[None, :, 2:])
    inter = np.prod(np.maximum(high - low, 0), -1)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, other_boxes))
    return inter / np.maximum(areas[:, None] + other_areas - inter, np.spacing(1))


def _ap(true, num_objects, eleven_point):
    """Return the AP of detections in order of score, `true` where they are true positives."""
    if not num_objects:
        return float("nan")
    hits = np.cumsum(true)
    recall, precision = hits / num_objects, hits / np.arange(1, len(true) + 1)
    # The largest precision at this recall or beyond, and 0 beyond the last.
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if eleven_point:
        # As in published tables, 0.6 is 0.6000000000000001 here, and a recall of 9 / 15 misses it.
        at = np.searchsorted(recall, np.linspace(0, 1, 11), side="left")
        return float(envelope[at].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1]))
