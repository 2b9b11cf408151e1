"""From matches to COCO's numbers: everything at once for all classes, at any time.

The recall and precision of a class change at its true positives alone, so all work but one sort and
a running count is on those.
"""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from crnas_jax.evaluation.matching import AREAS, EVERY_THRESHOLD, THRESHOLDS, GroundTruth, match

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RECALLS = np.linspace(0.0, 1.0, 101)
# COCO counts so many detections of a class in an image.
MOST_DETECTIONS = 100
# Images times detectors of a call: a core's cache holds what that takes.
_ROWS = 512
# Samples times detections of a bootstrap that are in memory at once.
_AT_ONCE = 4_000_000
# Of the rows that `flags` makes.
FIELDS = ("image_id", "label", "score", "rank", "true", "ignored")


def flags(found: dict[str, np.ndarray], matches: dict[str, np.ndarray], image_ids, weight) -> dict:
    """The rows of the real detections of one subnet on one mini-batch.

    Args:
      found: `scores`, `labels`, `valid`, NumPy [images, n].
      matches: see `matching.match`, NumPy [images, n, ...].
      image_ids: [images].
      weight: [images]; those of 0 are padding.
    """
    real = found["valid"] & (np.asarray(weight) > 0)[:, None] & (matches["rank"] < MOST_DETECTIONS)
    (rows,) = np.nonzero(real.reshape(-1))

    def of(leaf, dtype=None):
        # `take` copies a row of four flags sixty times as fast as indexing does.
        picked = leaf.reshape(-1, *leaf.shape[2:]).take(rows, axis=0)
        return picked.astype(dtype or leaf.dtype, copy=False)

    return {
        "image_id": np.asarray(image_ids)[rows // real.shape[1]],
        "label": of(found["labels"], np.int32),
        "score": of(found["scores"]),
        "rank": of(matches["rank"], np.uint8),
        "true": of(matches["true"]),
        "ignored": of(matches["ignored"]),
    }


@dataclasses.dataclass(frozen=True)
class MatchTable:
    """All matches of one detector on some images, best first within each class.

    Attributes:
      label: 0-based, ascending [rows].
      image: position of the image in `images` [rows].
      rank: see `matching.match`, as `true` and `ignored`.
      truths: objects that count [images, classes, areas].
    """

    label: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    true: np.ndarray
    ignored: np.ndarray
    truths: np.ndarray

    @classmethod
    def of(cls, truth: GroundTruth, parts: Sequence[dict], image_ids) -> "MatchTable":
        """Args: the data set's objects; `flags` of mini-batches; all images seen."""
        image_ids = np.unique(np.asarray(image_ids, np.int64))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}
        known = (rows["label"] > 0) & (rows["label"] <= truth.classes)
        if not known.all():  # as in pycocotools, a category that is none counts nowhere
            rows = {name: leaf[known] for name, leaf in rows.items()}
        image = np.searchsorted(image_ids, rows["image_id"]).astype(np.int32)
        # Of equal scores in a class the image with the smaller id comes first, as in pycocotools.
        label = rows["label"] - 1
        order = _order(label, rows["score"], image)
        own = (rows[name].take(order, axis=0) for name in ("rank", "true", "ignored"))
        return cls(label[order], image[order], *own, truth.counted_in(image_ids))

    def metrics(self) -> dict[str, float]:
        """The twelve of `METRICS`, fractions; NaN where nothing was to be found."""
        truths = self.truths.sum(0)
        precision, recall = [], []
        for area in range(len(AREAS)):
            exists = truths[:, area] > 0
            envelope, *groups = self._envelope(area)
            begins, found = (group[:, exists] for group in groups)
            needed = _needed(truths[exists, area])
            places = np.where(needed <= found[..., None], begins[..., None] + needed - 1, -1)
            precision.append(envelope[places].mean(-1))
            recall.append(found / truths[exists, area])
        values = [
            precision[0],
            precision[0][0],
            precision[0][5],
            *precision[1:],
            *(self._recall_of_best(number, truths[:, 0]) for number in (1, 10)),
            *recall,
        ]
        return {name: _mean(value) for name, value in zip(METRICS, values, strict=True)}

    def ap(self, weights: np.ndarray) -> np.ndarray:
        """AP of bootstrap samples.

        Args:
          weights: [samples, images], how often each image is in each sample.
        """
        weights = np.asarray(weights, np.float32)
        at_once = max(_AT_ONCE // max(len(self.label), 1), 1)
        starts = range(0, len(weights), at_once)
        return np.concatenate([self._ap(weights[start : start + at_once]) for start in starts])

    def _ap(self, weights):
        """Each true positive counts for the recall thresholds that are reached with it."""
        truths = (weights @ self.truths[:, :, 0].astype(np.float32)).astype(np.float64)
        total = np.zeros(len(weights))
        everything = _running(weights[:, self.image])
        begins = np.searchsorted(self.label, np.arange(self.truths.shape[1]))
        for threshold in range(len(THRESHOLDS)):
            true = np.flatnonzero(_bit(self.true[:, 0], threshold))
            ignored = np.flatnonzero(_bit(self.ignored[:, 0], threshold))
            label = self.label[true]
            first = np.searchsorted(label, label)  # the first true positive of the class
            hits = _running(weights[:, self.image[true]])
            hits = (hits[:, 1:] - hits[:, first]).astype(np.float64)
            begin = begins[label]
            seen = everything[:, true + 1] - everything[:, begin]
            if len(ignored):
                skipped = _running(weights[:, self.image[ignored]])
                until, since = np.searchsorted(ignored, true), np.searchsorted(ignored, begin)
                seen -= skipped[:, until] - skipped[:, since]
            precision = hits / np.maximum(seen, 1e-9)
            envelope = _falling(precision, label)
            recall = hits / np.maximum(truths[:, label], 1e-9)
            reached = np.floor(100 * recall + 1e-6).astype(int)
            reached += RECALLS[reached] <= recall
            before = np.roll(reached, 1, axis=1)
            before[:, first] = 0
            total += (envelope * (reached - before)).sum(1)
        return total / (np.maximum((truths > 0).sum(1), 1) * len(RECALLS) * len(THRESHOLDS))

    def _envelope(self, area):
        """All thresholds, one after the other: the greatest precision at each true positive's
        recall and beyond, and a 0 at the end; where the true positives of each threshold and class
        begin, and how many there are, both [thresholds, classes].

        Most rows are not true, and ignored at no threshold or at all: only the others are looked
        at ten times.
        """
        true, ignored = (np.ascontiguousarray(bits[:, area]) for bits in (self.true, self.ignored))
        classes = self.truths.shape[1]
        begins = np.searchsorted(self.label, np.arange(classes))
        rows = np.flatnonzero(true)
        threshold, here = np.nonzero(_bits(true[rows]))
        always = ignored == EVERY_THRESHOLD
        mixed = np.flatnonzero((ignored > 0) & ~always)
        counted = np.arange(len(ignored) + 1, dtype=np.int32)
        counted[1:] -= np.cumsum(always, dtype=np.int32)
        skipped = np.zeros((len(THRESHOLDS), len(mixed) + 1), np.int32)
        np.cumsum(_bits(ignored[mixed]), 1, out=skipped[:, 1:])

        row, begin = rows[here], begins[self.label[rows]][here]
        # A true positive is itself not ignored, nor among those that are skipped before it.
        seen = counted[row + 1] - counted[begin]
        at, at_begin = np.searchsorted(mixed, rows)[here], np.searchsorted(mixed, begins)
        at_begin = at_begin[self.label[rows]][here]
        seen -= skipped[threshold, at] - skipped[threshold, at_begin]
        group = threshold * classes + self.label[row]
        firsts = np.searchsorted(group, np.arange(len(THRESHOLDS) * classes + 1))
        hits = np.arange(1, len(row) + 1) - firsts[group]
        precision = hits / (seen + np.spacing(1))
        for start, end in itertools.pairwise(firsts[::classes]):
            precision[start:end] = _falling(precision[start:end], self.label[row[start:end]])
        shape = (len(THRESHOLDS), classes)
        return (
            np.append(precision, 0.0),
            firsts[:-1].reshape(shape),
            np.diff(firsts).reshape(shape),
        )

    def _recall_of_best(self, number, truths):
        """Recalls [thresholds, classes with objects] of the best detections of each image."""
        rows = np.flatnonzero((self.rank < number) & (self.true[:, 0] > 0))
        bits = _bits(self.true[rows, 0])
        found = np.array([np.bincount(self.label[rows], bit, len(truths)) for bit in bits])
        return found[:, truths > 0] / truths[truths > 0]


def match_tables(truth: GroundTruth, found: dict[str, np.ndarray], image_ids) -> list[MatchTable]:
    """The tables of several detectors from arrays in memory.

    Args:
      truth: the data set's objects.
      found: `boxes` [detectors, images, n, 4] xyxy in pixels of the annotations, or in their place
        `bbox`, COCO's (x, y, width, height); `scores`, `labels`, `valid` [detectors, images, n],
        best first.
      image_ids: of the images.
    """
    image_ids = np.asarray(image_ids, np.int64)
    boxes = "bbox" if "bbox" in found else "boxes"
    # Images with about as many objects go together: a call has room for the most of its images.
    order = np.argsort(truth.numbers(image_ids), kind="stable")
    detectors = len(found["scores"])
    at_once = min(max(_ROWS // detectors, 1), len(order))

    matches = {}
    for start in range(0, len(order), at_once):
        # The last call begins earlier and not with fewer images: one program for all.
        images = order[min(start, len(order) - at_once) :][:at_once]
        own = (found[name].take(images, axis=1) for name in (boxes, "valid", "labels"))
        own = match(*own, truth.batch(image_ids[images]), xywh=boxes == "bbox")
        for name, leaf in jax.device_get(own).items():
            if name not in matches:
                shape = (detectors, len(order), *leaf.shape[2:])
                matches[name] = np.empty(shape, leaf.dtype)
            matches[name][:, images] = leaf

    def table(detector):
        own = (jax.tree.map(lambda leaf: leaf[detector], tree) for tree in (found, matches))
        part = flags(*own, image_ids, np.ones(len(image_ids)))
        return MatchTable.of(truth, [part], image_ids)

    return in_threads(table, range(detectors))


def in_threads(function: Callable, items) -> list:
    """The function of each item: NumPy does most of its work without Python's lock."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def of_results(results: list[dict], category_ids, image_ids) -> dict[str, np.ndarray]:
    """Detections in COCO's result format as `match_tables` takes them, of one detector."""
    row_of = {int(image): row for row, image in enumerate(image_ids)}
    label_of = {category: label for label, category in enumerate(category_ids, 1)}
    by_image: list[list[dict]] = [[] for _ in image_ids]
    for result in results:
        by_image[row_of[result["image_id"]]].append(result)
    shape = (1, len(image_ids), max(map(len, by_image), default=0) or 1)
    found = {
        "bbox": np.zeros((*shape, 4)),
        "scores": np.zeros(shape),
        "labels": np.zeros(shape, np.int32),
        "valid": np.zeros(shape, bool),
    }
    for row, own in enumerate(by_image):
        for place, result in enumerate(sorted(own, key=lambda one: -one["score"])):
            found["bbox"][0, row, place] = result["bbox"]
            found["scores"][0, row, place] = result["score"]
            found["labels"][0, row, place] = label_of[result["category_id"]]
            found["valid"][0, row, place] = True
    return found


def paired_bootstrap(
    first: MatchTable, second: MatchTable, samples: int = 500, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """AP of `second` minus AP of `first`, and its 95 % interval over resampled images.

    Both see the same resampled images, so that what an image does to both cancels.
    """
    weights = bootstrap(len(first.truths), samples, seed)
    difference = second.metrics()["AP"] - first.metrics()["AP"]
    return difference, interval(second.ap(weights) - first.ap(weights), difference)


def bootstrap(images: int, samples: int, seed: int) -> np.ndarray:
    """How often each of `images` images is in each sample, [samples, images]."""
    rng = np.random.default_rng([seed, images])
    draws = rng.integers(images, size=(samples, images))
    return np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float32)


def interval(draws: np.ndarray, value: float, confidence: float = 0.95) -> tuple[float, float]:
    """Percentiles of bootstrap draws, stretched to hold the value itself."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return min(float(low), value), max(float(high), value)


def _order(label, score, image):
    """By label, then falling score, then image, then place."""
    by_image = np.argsort(image, kind="stable")
    score, label = score[by_image], label[by_image].astype(np.uint64)
    place_bits = max(len(label) - 1, 1).bit_length()
    bits = place_bits + 32 + int(label.max(initial=0)).bit_length()
    if score.dtype != np.float32 or bits > 64 or not score.min(initial=0) >= 0:  # NaN comes last
        return by_image[np.lexsort((-score, label))]
    # One integer for each row: NumPy sorts those ten times faster than it finds a stable order.
    # The bits of positive floats rise with them.
    falling = ~(score + np.float32(0)).view(np.uint32)  # there is a negative 0
    key = label << np.uint64(place_bits + 32) | falling.astype(np.uint64) << np.uint64(place_bits)
    key |= np.arange(len(key), dtype=np.uint64)
    key.sort()
    return by_image[(key & np.uint64((1 << place_bits) - 1)).astype(np.int64)]


def _bit(bits, index):
    return (bits >> np.uint16(index)) & np.uint16(1)


def _bits(lanes):
    """Of integers [n] the bits of all thresholds, bool [thresholds, n]."""
    return (lanes >> np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None] & np.uint16(1)) > 0


def _running(values):
    """Cumulative sums along the last axis, a 0 before them."""
    out = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.float32)
    np.cumsum(values, -1, out=out[..., 1:])
    return out


def _falling(precision, label):
    """The greatest of what follows within a class, itself included; along the last axis."""
    offset = 2.0 * (int(label.max(initial=0)) - label)  # keeps classes apart
    return np.maximum.accumulate((precision + offset)[..., ::-1], -1)[..., ::-1] - offset


def _needed(truths):
    """How many true positives reach each recall threshold, at least 1: [classes, thresholds]."""
    number = np.maximum(truths, 1)[:, None]
    fewest = np.floor(RECALLS * number)
    fewest += fewest / number < RECALLS
    return np.maximum(fewest, 1).astype(int)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
