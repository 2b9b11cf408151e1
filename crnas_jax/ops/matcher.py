"""Assigns ground truth to anchors and proposals by IoU."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

POSITIVE, NEGATIVE, BETWEEN = 1, 0, -1


def match(
    iou: Float[Array, "boxes truths"],
    truth_valid: Bool[Array, " truths"],
    high: float,
    low: float,
    low_quality: bool,
) -> tuple[Int[Array, " boxes"], Int[Array, " boxes"]]:
    """Each box's best ground truth, and whether it is a positive, a negative or neither.

    Args:
      iou: of every box with every ground truth.
      truth_valid: False for padding.
      high: from this IoU on a box is positive.
      low: below this IoU it is negative; between the two it is neither.
      low_quality: also take the best boxes of each ground truth (all ties) as positive. Such a box
        keeps its own best ground truth. A ground truth that no box touches has no best box
        (torchvision, which has no such floor, would there make every box positive).

    Returns:
      The index of the ground truth with the greatest IoU (the first of equals; 0 where there is
      none), and POSITIVE, NEGATIVE or BETWEEN.
    """
    iou = jnp.where(truth_valid[None, :], iou, -1.0)
    best = iou.max(1)
    label = jnp.where(best >= high, POSITIVE, jnp.where(best < low, NEGATIVE, BETWEEN))
    if low_quality:
        best_of_truth = iou.max(0)
        is_best = (iou == best_of_truth[None, :]) & (best_of_truth > 0)[None, :]
        label = jnp.where(is_best.any(1), POSITIVE, label)
    return iou.argmax(1), label
