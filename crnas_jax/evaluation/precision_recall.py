"""COCO's precision and recall at all thresholds: orders, counts, bits and envelopes."""

import itertools

import numpy as np

from crnas_jax.evaluation.matching import EVERY_THRESHOLD, THRESHOLDS

RECALLS = np.linspace(0.0, 1.0, 101)


def best_first_order(label: np.ndarray, score: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return the order of detections by label, then descending score, then image, then position.

    Args:
      label: labels from 0, [n].
      score: scores, [n]; NaN comes last.
      image: positions of the images, [n].
    """
    by_image = np.argsort(image, kind="stable")
    score, label = score[by_image], label[by_image].astype(np.uint64)
    place_bits = max(len(label) - 1, 1).bit_length()
    num_bits = place_bits + 32 + int(label.max(initial=0)).bit_length()
    if score.dtype != np.float32 or num_bits > 64 or not score.min(initial=0) >= 0:
        return by_image[np.lexsort((-score, label))]
    # NumPy sorts one integer for each row ten times faster than it finds a stable order. The bits
    # of non-negative floats increase with the floats. Adding 0 turns -0.0 into 0.0.
    descending = ~(score + np.float32(0)).view(np.uint32)
    key = label << np.uint64(place_bits + 32)
    key |= descending.astype(np.uint64) << np.uint64(place_bits)
    key |= np.arange(len(key), dtype=np.uint64)
    key.sort()
    return by_image[(key & np.uint64((1 << place_bits) - 1)).astype(np.int64)]


def threshold_bit(integers: np.ndarray, threshold: int) -> np.ndarray:
    """Return the bit of one threshold, 0 or 1, uint16 [n] of uint16 [n]."""
    return (integers >> np.uint16(threshold)) & np.uint16(1)


def threshold_bits(integers: np.ndarray) -> np.ndarray:
    """Return the bits of all thresholds, bool [thresholds, n] of uint16 [n]."""
    return (integers >> np.arange(len(THRESHOLDS), dtype=np.uint16)[:, None] & np.uint16(1)) > 0


def running_sum(values: np.ndarray) -> np.ndarray:
    """Return cumulative sums along the last axis, preceded by a 0, float32 [..., n + 1]."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.float32)
    np.cumsum(values, -1, out=sums[..., 1:])
    return sums


def precision_envelope(precision: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the largest precision of the same class at each place or after it.

    Args:
      precision: precisions, [..., n].
      label: labels, ascending, [n].
    """
    offset = 2.0 * (int(label.max(initial=0)) - label)  # keeps classes apart
    return np.maximum.accumulate((precision + offset)[..., ::-1], -1)[..., ::-1] - offset


def envelopes_at_hits(
    label: np.ndarray, true: np.ndarray, ignored: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the precision envelope at the true positives of all thresholds and classes.

    Most detections are not true positives, and most are ignored at no threshold or at all. Only the
    others are looked at once for each threshold.

    Args:
      label: labels from 0, ascending, best first within a label, [n].
      true: bits of the thresholds at which a detection is a true positive, uint16 [n].
      ignored: bits of the thresholds at which it does not count, uint16 [n].
      num_classes: number of classes.

    Returns:
      The largest precision at the recall of each true positive or beyond, one threshold after the
      other, with a 0 appended; where the true positives of each threshold and class begin; and
      their number, both [thresholds, classes].
    """
    true, ignored = np.ascontiguousarray(true), np.ascontiguousarray(ignored)
    begins = np.searchsorted(label, np.arange(num_classes))
    rows = np.flatnonzero(true)
    threshold, index = np.nonzero(threshold_bits(true[rows]))
    always = ignored == EVERY_THRESHOLD
    mixed = np.flatnonzero((ignored > 0) & ~always)
    num_counted = np.arange(len(ignored) + 1, dtype=np.int32)
    num_counted[1:] -= np.cumsum(always, dtype=np.int32)
    num_ignored = np.zeros((len(THRESHOLDS), len(mixed) + 1), np.int32)
    np.cumsum(threshold_bits(ignored[mixed]), 1, out=num_ignored[:, 1:])

    row, begin = rows[index], begins[label[rows]][index]
    # A true positive is itself not ignored, nor among the ignored rows before it.
    seen = num_counted[row + 1] - num_counted[begin]
    at, at_begin = np.searchsorted(mixed, rows)[index], np.searchsorted(mixed, begins)
    at_begin = at_begin[label[rows]][index]
    seen -= num_ignored[threshold, at] - num_ignored[threshold, at_begin]
    group = threshold * num_classes + label[row]
    firsts = np.searchsorted(group, np.arange(len(THRESHOLDS) * num_classes + 1))
    hits = np.arange(1, len(row) + 1) - firsts[group]
    precision = hits / (seen + np.spacing(1))
    for start, end in itertools.pairwise(firsts[::num_classes]):
        precision[start:end] = precision_envelope(precision[start:end], label[row[start:end]])
    shape = (len(THRESHOLDS), num_classes)
    return np.append(precision, 0.0), firsts[:-1].reshape(shape), np.diff(firsts).reshape(shape)


def recall(label: np.ndarray, true: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
    """Return the recall at each threshold of the classes with objects, [thresholds, classes].

    Args:
      label: labels from 0, [n].
      true: bits of the thresholds at which a detection is a true positive, uint16 [n].
      num_objects: number of objects in each class, [all classes].
    """
    rows = np.flatnonzero(true)
    bits = threshold_bits(true[rows])
    hits = np.array([np.bincount(label[rows], bit, len(num_objects)) for bit in bits])
    return hits[:, num_objects > 0] / num_objects[num_objects > 0]


def hits_needed(num_objects: np.ndarray) -> np.ndarray:
    """Return how many true positives reach each recall, at least 1, int [classes, recalls].

    Args:
      num_objects: number of objects in each class, [classes].
    """
    num_objects = np.maximum(num_objects, 1)[:, None]
    needed = np.floor(RECALLS * num_objects)
    needed += needed / num_objects < RECALLS
    return np.maximum(needed, 1).astype(int)


def mean_without_nan(values: np.ndarray) -> float:
    """Return the mean of the values that are numbers, NaN where there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
