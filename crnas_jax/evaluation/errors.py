"""What a detector gets wrong on a split: curves, confusions, kinds of false detections, intervals.

The kinds are those of TIDE (Bolya et al., arXiv 2008.08115). Detections count from the score on at
which precision and recall over all classes have the best F1.
"""

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from crnas_jax.data.source import DetectionSource
from crnas_jax.evaluation.average_precision import (
    MatchTable,
    bootstrap_weights,
    confidence_interval,
    match_all,
    match_records,
)
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.results import detections_from_results

# Of a false detection, by what it overlaps: an object of its class that is taken already; one of
# another class, by half; one of its class, by a tenth; one of another class, by a tenth; nothing.
KINDS = ("duplicate", "class", "place", "class and place", "background")
# IoU thresholds of precision-recall curves, by their position in `matching.THRESHOLDS`.
CURVES = {"0.5": 0, "0.75": 5}
_IOU, _SLIGHT_IOU = 0.5, 0.1
# The metrics that have an interval: area range, and thresholds (all when empty).
_INTERVALS = {
    **{"AP": (0, ()), "AP50": (0, (0,)), "AP75": (0, (5,))},
    **{"APs": (1, ()), "APm": (2, ()), "APl": (3, ())},
}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What a detector gets wrong on a split.

    Attributes:
      score: detections count from this score on, but for the curves.
      curves: by IoU threshold (a key of `CURVES`) the interpolated precision of each class at
        recalls 0, 0.01, .. 1; [classes, 101], NaN for classes without objects.
      confusion: number of objects of a class, or of none (last row), that were detected as one, or
        not at all (last column); int [classes + 1, classes + 1]. A detection and an object of
        another class make a pair where they overlap by half and neither has a partner of its class.
      false: number of false detections of each class, by kind; int [classes, kinds].
      false_by_image: number of false detections in each image, int [images].
      missed_by_image: number of objects without a detection of their class, int [images].
      draws: AP on resampled images; by metric [samples], `per_class` [samples, classes]; NaN where
        there is nothing to detect.
      values: the same on the images themselves; by metric [1], `per_class` [1, classes].
    """

    score: float
    curves: dict[str, np.ndarray]
    confusion: np.ndarray
    false: np.ndarray
    false_by_image: np.ndarray
    missed_by_image: np.ndarray
    draws: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    def intervals(self) -> dict:
        """Return 95 % intervals over images by metric, `per_class` a list; None for none."""
        ends = {name: _ends(self.draws[name], self.values[name][0]) for name in _INTERVALS}
        columns = zip(self.draws["per_class"].T, self.values["per_class"][0], strict=True)
        return {**ends, "per_class": [_ends(draws, value) for draws, value in columns]}

    def to_json(self) -> dict:
        """Return everything but the draws as JSON has it; None for NaN."""
        curves = {
            name: [None if np.isnan(row[0]) else np.round(row, 4).tolist() for row in curve]
            for name, curve in self.curves.items()
        }
        arrays = ("false", "false_by_image", "missed_by_image")
        lists = {name: getattr(self, name).tolist() for name in arrays}
        rows, columns = np.nonzero(self.confusion)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        # Most pairs of many classes are never confused.
        lists["confusion"] = [[*pair, int(self.confusion[pair])] for pair in pairs]
        content = {"score": self.score, "curves": curves, "kinds": list(KINDS)}
        return {**content, **lists, "ci95": self.intervals()}


def diagnose(
    source: DetectionSource, results: list[dict], num_samples: int = 500, seed: int = 0
) -> Diagnosis:
    """Find out what a detector gets wrong.

    Args:
      source: the split.
      results: its detections in COCO's result format.
      num_samples: number of bootstrap samples of the images.
      seed: seed of the samples; equal ones resample equally, whatever the detector.
    """
    ground_truth, image_ids = GroundTruth.from_source(source), np.asarray(source.image_ids)
    detections = detections_from_results(results, source.category_ids, image_ids)
    matches = match_all(ground_truth, detections, image_ids)
    (detections, matches) = (
        {name: leaf[0] for name, leaf in tree.items()} for tree in (detections, matches)
    )
    records = match_records(detections, matches, image_ids, np.ones(len(image_ids)))
    table = MatchTable.from_records(ground_truth, [records], image_ids)
    score = _best_score(records, int(ground_truth.num_counted[..., 0].sum()))
    weights = bootstrap_weights(len(image_ids), num_samples, seed)
    num_classes = ground_truth.num_classes
    confusion = np.zeros((num_classes + 1, num_classes + 1), int)
    false = np.zeros((num_classes, len(KINDS)), int)
    counts = np.zeros((2, len(image_ids)), int)
    for row in range(len(image_ids)):
        chosen = detections["valid"][row] & (detections["scores"][row] >= score)
        boxes, labels = detections["bbox"][row][chosen], detections["labels"][row][chosen]
        objects = {name: leaf[0] for name, leaf in ground_truth.batch(image_ids[[row]]).items()}
        is_object = objects["labels"] > 0
        objects = {name: leaf[is_object] for name, leaf in objects.items()}
        pairs = _pair(boxes, labels, objects)
        counts[:, row] = _count(labels, objects, *pairs, confusion, false)
    return Diagnosis(
        score=score,
        curves={name: table.precisions(threshold) for name, threshold in CURVES.items()},
        confusion=confusion,
        false=false,
        false_by_image=counts[0],
        missed_by_image=counts[1],
        draws=_draws(table, weights),
        values=_draws(table, np.ones((1, len(image_ids)))),
    )


def _best_score(records, num_objects):
    """Return the score from which on F1 at an IoU of 0.5 is largest; 1 without a detection."""
    true, ignored = (records[name][:, 0] & 1 > 0 for name in ("true", "ignored"))
    order = np.argsort(-records["score"], kind="stable")
    order = order[~ignored[order]]
    if not len(order):
        return 1.0
    hits = np.cumsum(true[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + max(num_objects, 1))
    return float(records["score"][order[np.argmax(f1)]])


def _draws(table, weights):
    draws = {}
    for name, (area, thresholds) in _INTERVALS.items():
        options = {"area": area, **({"thresholds": thresholds} if thresholds else {})}
        by_class = table.bootstrap_class_ap(weights, **options)
        is_there = ~np.isnan(by_class)
        total = np.where(is_there, by_class, 0).sum(1)
        num_classes = is_there.sum(1)
        draws[name] = np.where(num_classes > 0, total / np.maximum(num_classes, 1), np.nan)
        if name == "AP":
            draws["per_class"] = by_class
    return draws


def _ends(draws, value):
    """Return the interval of draws that are numbers; None without two of them."""
    real = draws[np.isfinite(draws)]
    if len(real) < 2 or not np.isfinite(value):
        return None
    return list(confidence_interval(real, float(value)))


def _pair(boxes, labels, objects):
    """Match detections to objects of their class at an IoU of 0.5, as COCO does.

    Returns:
      The object of each detection, -1 for none; whether the detection is ignored; and the IoUs,
      [detections, objects].
    """
    crowd, partner = objects["crowd"], np.full(len(boxes), -1)
    ious = coco_mask.iou(boxes, objects["boxes"], crowd.astype(np.uint8).tolist())
    ious = np.asarray(ious, float).reshape(len(boxes), len(crowd))
    is_free, is_ignored = np.ones(len(crowd), bool), np.zeros(len(boxes), bool)
    for index, label in enumerate(labels):
        same = (objects["labels"] == label) & (ious[index] >= _IOU)
        mine = same & is_free & ~crowd
        if mine.any():
            partner[index] = np.argmax(np.where(mine, ious[index], -1))
            is_free[partner[index]] = False
        else:
            is_ignored[index] = (same & crowd).any()
    return partner, is_ignored, ious


def _count(labels, objects, partner, is_ignored, ious, confusion, false):
    """Add an image to `confusion` and `false`; return its false detections and missed objects."""
    counted, nothing = ~objects["crowd"], len(confusion) - 1
    object_labels, has_partner = objects["labels"], np.zeros(len(counted), bool)
    has_partner[partner[partner >= 0]] = True
    num_missed = int((counted & ~has_partner).sum())
    np.add.at(confusion, (labels[partner >= 0] - 1, labels[partner >= 0] - 1), 1)
    false_ones = np.flatnonzero((partner < 0) & ~is_ignored)
    for index in false_ones:
        overlaps = np.where(counted, ious[index], 0)
        is_same = object_labels == labels[index]
        same, other = (overlaps[mask].max(initial=0) for mask in (is_same, ~is_same))
        if same >= _IOU:
            kind = "duplicate"
        elif other >= _IOU:
            kind = "class"
        elif same >= _SLIGHT_IOU:
            kind = "place"
        else:
            kind = "class and place" if other >= _SLIGHT_IOU else "background"
        false[labels[index] - 1, KINDS.index(kind)] += 1
        mine = ~is_same & ~has_partner & (overlaps >= _IOU)
        truth = nothing
        if mine.any():
            place = np.argmax(np.where(mine, overlaps, -1))
            truth, has_partner[place] = object_labels[place] - 1, True
        confusion[truth, labels[index] - 1] += 1
    np.add.at(confusion, (object_labels[counted & ~has_partner] - 1, nothing), 1)
    return len(false_ones), num_missed
