"""COCO's AP and AR from matches, for all classes at once and on any set of images.

The recall and precision of a class change at its true positives alone, so that everything but one
sort and a running count works on the true positives.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from crnas_jax.evaluation.matching import AREAS, THRESHOLDS, GroundTruth, match
from crnas_jax.evaluation.precision_recall import (
    RECALLS,
    best_first_order,
    envelopes_at_hits,
    hits_needed,
    mean_without_nan,
    precision_envelope,
    recall,
    running_sum,
    threshold_bit,
)

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# COCO counts at most this many detections of a class in an image.
MAX_DETECTIONS = 100
# Fields of the records that `match_records` returns.
RECORD_FIELDS = ("image_id", "label", "score", "rank", "true", "ignored")
# Images times detectors in one call of `match`: their arrays fit the cache of a core.
_ROWS_PER_CALL = 512
# Samples times detections that a bootstrap holds in memory at once.
_BOOTSTRAP_CHUNK = 4_000_000
_EVERY_THRESHOLD = tuple(range(len(THRESHOLDS)))


def match_records(
    detections: dict[str, np.ndarray], matches: dict[str, np.ndarray], image_ids, weight
) -> dict[str, np.ndarray]:
    """Return one record for each real detection of one subnet on one mini-batch.

    Args:
      detections: `scores`, `labels`, `valid`, NumPy [images, n].
      matches: result of `matching.match` for the subnet, NumPy [images, n, ...].
      image_ids: ids of the images, [images].
      weight: weights of the images, [images], 0 for padding images.

    Returns:
      Columns named as in `RECORD_FIELDS`, [records] or, of `true` and `ignored`, [records, areas].
    """
    in_range = (np.asarray(weight) > 0)[:, None] & (matches["rank"] < MAX_DETECTIONS)
    real = detections["valid"] & in_range
    (rows,) = np.nonzero(real.reshape(-1))

    def column(leaf, dtype=None):
        # `take` copies a row of four integers sixty times as fast as indexing does.
        picked = leaf.reshape(-1, *leaf.shape[2:]).take(rows, axis=0)
        return picked.astype(dtype or leaf.dtype, copy=False)

    return {
        "image_id": np.asarray(image_ids)[rows // real.shape[1]],
        "label": column(detections["labels"], np.int32),
        "score": column(detections["scores"]),
        "rank": column(matches["rank"], np.uint8),
        "true": column(matches["true"]),
        "ignored": column(matches["ignored"]),
    }


@dataclasses.dataclass(frozen=True)
class MatchTable:
    """The matches of one detector on a set of images, best first within each class.

    Attributes:
      label: class of each detection counted from 0, ascending, [rows].
      image: position of the image among the ascending image ids, [rows].
      rank: number of better detections of the class in the image, [rows].
      true: bits of the thresholds at which the detection takes an object that counts, uint16
        [rows, areas]; see `matching.match`.
      ignored: bits of the thresholds at which the detection does not count, uint16 [rows, areas].
      num_objects: number of objects that count, [images, classes, areas].
    """

    label: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    num_objects: np.ndarray

    @classmethod
    def from_records(
        cls, ground_truth: GroundTruth, records: Sequence[dict], image_ids
    ) -> "MatchTable":
        """Build the table of one detector from the records of mini-batches.

        Args:
          ground_truth: objects of the data set.
          records: results of `match_records`, one for each mini-batch.
          image_ids: ids of all images in the mini-batches, images without detections included.
        """
        image_ids = np.unique(np.asarray(image_ids, np.int64))
        columns = {name: np.concatenate([part[name] for part in records]) for name in RECORD_FIELDS}
        known = (columns["label"] > 0) & (columns["label"] <= ground_truth.num_classes)
        if not known.all():  # pycocotools does not count detections of unknown categories either
            columns = {name: leaf[known] for name, leaf in columns.items()}
        image = np.searchsorted(image_ids, columns["image_id"]).astype(np.int32)
        # Equal scores of a class go by ascending image id, as in pycocotools.
        label = columns["label"] - 1
        order = best_first_order(label, columns["score"], image)
        matches = (columns[name].take(order, axis=0) for name in ("rank", "true", "ignored"))
        return cls(label[order], image[order], *matches, ground_truth.num_counted_in(image_ids))

    def metrics(self) -> dict[str, float]:
        """Return the twelve `METRICS` as fractions, NaN where there are no objects to detect."""
        num_objects = self.num_objects.sum(0)
        precisions, recalls = [], []
        for area in range(len(AREAS)):
            exists = num_objects[:, area] > 0
            envelope, *groups = envelopes_at_hits(
                self.label, self.true[:, area], self.ignored[:, area], len(num_objects)
            )
            begins, num_true = (group[:, exists] for group in groups)
            needed = hits_needed(num_objects[exists, area])
            places = np.where(needed <= num_true[..., None], begins[..., None] + needed - 1, -1)
            precisions.append(envelope[places].mean(-1))
            recalls.append(num_true / num_objects[exists, area])
        values = [
            precisions[0],
            precisions[0][0],
            precisions[0][5],
            *precisions[1:],
            *(
                recall(
                    self.label,
                    np.where(self.rank < num_best, self.true[:, 0], 0),
                    num_objects[:, 0],
                )
                for num_best in (1, 10)
            ),
            *recalls,
        ]
        return {name: mean_without_nan(value) for name, value in zip(METRICS, values, strict=True)}

    def bootstrap_ap(self, weights: np.ndarray) -> np.ndarray:
        """Return the AP of bootstrap samples, [samples].

        Args:
          weights: number of times that each image is in each sample, [samples, images].
        """

        def ap(weights):
            num_objects, gains = self._gains(weights)
            total = sum(gain.sum(1) for _, gain in gains)
            return total / np.maximum((num_objects > 0).sum(1), 1) / len(THRESHOLDS)

        return self._in_chunks(ap, weights)

    def bootstrap_class_ap(
        self, weights: np.ndarray, area: int = 0, thresholds: Sequence[int] = _EVERY_THRESHOLD
    ) -> np.ndarray:
        """Return the AP of each class in bootstrap samples, [samples, classes].

        NaN where a sample has no object of a class that counts.

        Args:
          weights: see `bootstrap_ap`.
          area: position in `AREAS`.
          thresholds: positions in `THRESHOLDS` of those to average over.
        """

        def class_ap(weights):
            num_objects, gains = self._gains(weights, area, thresholds)
            total = np.zeros(num_objects.shape)
            for label, gain in gains:
                classes, firsts = np.unique(label, return_index=True)
                if len(classes):
                    total[:, classes] += np.add.reduceat(gain, firsts, axis=1)
            return np.where(num_objects > 0, total / len(thresholds), np.nan)

        return self._in_chunks(class_ap, weights)

    def _in_chunks(self, function, weights):
        """Apply a function to the weights of samples that fit into memory together."""
        weights = np.asarray(weights, np.float32)
        chunk = max(_BOOTSTRAP_CHUNK // max(len(self.label), 1), 1)
        return np.concatenate(
            [function(weights[start : start + chunk]) for start in range(0, len(weights), chunk)]
        )

    def _gains(self, weights, area=0, thresholds=_EVERY_THRESHOLD):
        """Return what each true positive adds to its class's AP in bootstrap samples.

        Returns:
          The number of objects that count, [samples, classes]; and a generator that yields for each
          threshold the labels of the true positives, ascending, [n], and what they add, [samples,
          n].
        """
        num_objects = weights @ self.num_objects[:, :, area].astype(np.float32)
        num_objects = num_objects.astype(np.float64)
        return num_objects, self._gains_by_threshold(weights, num_objects, area, thresholds)

    def _gains_by_threshold(self, weights, num_objects, area, thresholds):
        num_before = running_sum(weights[:, self.image])
        begins = np.searchsorted(self.label, np.arange(self.num_objects.shape[1]))
        for threshold in thresholds:
            true = np.flatnonzero(threshold_bit(self.true[:, area], threshold))
            ignored = np.flatnonzero(threshold_bit(self.ignored[:, area], threshold))
            label = self.label[true]
            first = np.searchsorted(label, label)  # the first true positive of the class
            hits = running_sum(weights[:, self.image[true]])
            hits = (hits[:, 1:] - hits[:, first]).astype(np.float64)
            begin = begins[label]
            seen = num_before[:, true + 1] - num_before[:, begin]
            if len(ignored):
                num_ignored = running_sum(weights[:, self.image[ignored]])
                until, since = np.searchsorted(ignored, true), np.searchsorted(ignored, begin)
                seen -= num_ignored[:, until] - num_ignored[:, since]
            precision = hits / np.maximum(seen, 1e-9)
            envelope = precision_envelope(precision, label)
            # The precision at a true positive counts for each recall that it is first to reach.
            recall = hits / np.maximum(num_objects[:, label], 1e-9)
            reached = np.floor(100 * recall + 1e-6).astype(int)
            reached += RECALLS[reached] <= recall
            before = np.roll(reached, 1, axis=1)
            before[:, first] = 0
            yield label, envelope * (reached - before) / len(RECALLS)

    def precisions(self, threshold: int) -> np.ndarray:
        """Return the interpolated precision of each class at the 101 `RECALLS`, [classes, recalls].

        NaN for classes without objects; 0 at recalls that are not reached.

        Args:
          threshold: position in `THRESHOLDS`.
        """
        num_objects = self.num_objects.sum(0)[:, 0]
        envelope, begins, num_true = envelopes_at_hits(
            self.label, self.true[:, 0], self.ignored[:, 0], len(num_objects)
        )
        needed = hits_needed(num_objects)
        is_reached = needed <= num_true[threshold][:, None]
        places = np.where(is_reached, begins[threshold][:, None] + needed - 1, -1)
        return np.where(num_objects[:, None] > 0, envelope[places], np.nan)


def match_tables(
    ground_truth: GroundTruth, detections: dict[str, np.ndarray], image_ids
) -> list[MatchTable]:
    """Match the detections of several detectors, all in memory, and return a table for each.

    Args:
      ground_truth: objects of the data set.
      detections: see `match_all`.
      image_ids: ids of the images, [images].
    """
    image_ids = np.asarray(image_ids, np.int64)
    matches = match_all(ground_truth, detections, image_ids)

    def table(detector):
        trees = (jax.tree.map(lambda leaf: leaf[detector], tree) for tree in (detections, matches))
        records = match_records(*trees, image_ids, np.ones(len(image_ids)))
        return MatchTable.from_records(ground_truth, [records], image_ids)

    return map_in_threads(table, range(len(detections["scores"])))


def match_all(
    ground_truth: GroundTruth, detections: dict[str, np.ndarray], image_ids: np.ndarray
) -> dict[str, np.ndarray]:
    """Match the detections of several detectors; return what `matching.match` does, as NumPy.

    Args:
      ground_truth: objects of the data set.
      detections: `boxes` [detectors, images, n, 4] in xyxy, pixels of the annotations, or instead
        `bbox`, COCO's (x, y, width, height); `scores`, `labels`, `valid` [detectors, images, n],
        best first.
      image_ids: ids of the images, [images].
    """
    image_ids = np.asarray(image_ids, np.int64)
    boxes_name = "bbox" if "bbox" in detections else "boxes"
    # Images with about as many objects share a call, because its arrays are padded to the largest
    # number of objects in one of its images.
    order = np.argsort(ground_truth.objects_per_image(image_ids), kind="stable")
    num_detectors = len(detections["scores"])
    chunk = min(max(_ROWS_PER_CALL // num_detectors, 1), len(order))

    matches = {}
    for start in range(0, len(order), chunk):
        # The last call begins earlier instead of having fewer images, so one program serves all.
        images = order[min(start, len(order) - chunk) :][:chunk]
        inputs = (detections[name].take(images, axis=1) for name in (boxes_name, "valid", "labels"))
        objects = ground_truth.batch(image_ids[images])
        matched = match(*inputs, objects, xywh=boxes_name == "bbox")
        for name, leaf in jax.device_get(matched).items():
            if name not in matches:
                shape = (num_detectors, len(order), *leaf.shape[2:])
                matches[name] = np.empty(shape, leaf.dtype)
            matches[name][:, images] = leaf
    return matches


def map_in_threads(function: Callable, items) -> list:
    """Apply the function to each item in threads; NumPy mostly runs without Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def paired_bootstrap(
    first: MatchTable, second: MatchTable, num_samples: int = 500, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Return AP of `second` minus AP of `first`, and its 95 % interval over resampled images.

    Both tables see the same resampled images, so that the effect of an image on both cancels.

    Args:
      first: matches of one detector.
      second: matches of the other detector on the same images.
      num_samples: number of bootstrap samples.
      seed: seed of the bootstrap samples.
    """
    weights = bootstrap_weights(len(first.num_objects), num_samples, seed)
    difference = second.metrics()["AP"] - first.metrics()["AP"]
    draws = second.bootstrap_ap(weights) - first.bootstrap_ap(weights)
    return difference, confidence_interval(draws, difference)


def bootstrap_weights(num_images: int, num_samples: int, seed: int) -> np.ndarray:
    """Draw the number of times that each image is in each sample, float32 [samples, images]."""
    rng = np.random.default_rng([seed, num_images])
    draws = rng.integers(num_images, size=(num_samples, num_images))
    return np.stack([np.bincount(draw, minlength=num_images) for draw in draws]).astype(np.float32)


def confidence_interval(
    draws: np.ndarray, value: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws, widened to include the value itself.

    Args:
      draws: values of the bootstrap samples, [samples].
      value: value on the images themselves.
      confidence: share of the draws inside the interval.
    """
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), value), max(float(high), value)
