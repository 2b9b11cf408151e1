"""Bounds that follow the arithmetic: how far float32 may move a result on any machine."""

import jax
import numpy as np

EPSILON = np.finfo(np.float32).eps
FACTOR = 4


def nudged(tree, seed: int):
    """Return a tree whose float32 numbers are each moved by one epsilon of themselves.

    Sums in another order, which differs from machine to machine, change what a network makes of its
    weights by about as much. That is the measure of how near two programs of one function must be.
    """
    rng = np.random.default_rng(seed)

    def nudge(leaf):
        leaf = np.asarray(leaf)
        if leaf.dtype != np.float32:
            return leaf
        return leaf * (1 + EPSILON * rng.choice(np.float32([-1, 1]), leaf.shape))

    return jax.tree.map(nudge, tree)


def detection_errors(detections: dict, expected: dict) -> dict:
    """Return mean square errors of an image's scores, boxes and masks, for each one expected.

    Suppression leaves no two boxes of a class with an IoU above 1/2, so that no two have an IoU
    above 3/4 with the same box: partners are unique. The error is infinite where there is none.
    """
    boxes, others = (rows["boxes"].astype(np.float64) for rows in (expected, detections))
    corners = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (corners - np.maximum(boxes[:, None, :2], others[:, :2])).clip(0).prod(-1)
    areas, other_areas = ((rows[:, 2:] - rows[:, :2]).prod(-1) for rows in (boxes, others))
    overlaps = shared / (areas[:, None] + other_areas - shared)
    overlaps *= expected["labels"][:, None] == detections["labels"]
    partners = overlaps.argmax(1)
    errors = {}
    for name in expected.keys() & {"scores", "boxes", "masks"}:
        squares = np.square(detections[name][partners].astype(np.float64) - expected[name])
        mean = squares.reshape(len(squares), -1).mean(1)
        errors[name] = np.where(overlaps.max(1) > 0.75, mean, np.inf)
    return errors
