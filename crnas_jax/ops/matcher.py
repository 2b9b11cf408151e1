"""Match anchors and proposals to ground truth by IoU."""

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
    """Match each box to its best ground truth (Faster R-CNN, arXiv 1506.01497, section 3.1.2).

    Args:
      iou: IoU of every box with every ground truth, [boxes, truths].
      truth_valid: False for padding, [truths].
      high: IoU from which on a box is positive.
      low: IoU below which a box is negative; between the two it is neither.
      low_quality: whether the best boxes of each ground truth (all ties) are positive, too. Such a
        box keeps the index of the ground truth that it overlaps most. A ground truth that no box
        touches has no best box (torchvision, which has no such floor, would there make every box
        positive).

    Returns:
      Index of the ground truth with the largest IoU for each box (the first of equals; 0 where
      there is none), and POSITIVE, NEGATIVE or BETWEEN, both [boxes].
    """
    iou = jnp.where(truth_valid[None, :], iou, -1.0)
    best = iou.max(1)
    label = jnp.where(best >= high, POSITIVE, jnp.where(best < low, NEGATIVE, BETWEEN))
    if low_quality:
        best_of_truth = iou.max(0)
        is_best = (iou == best_of_truth[None, :]) & (best_of_truth > 0)[None, :]
        label = jnp.where(is_best.any(1), POSITIVE, label)
    return iou.argmax(1), label


def force_best(
    iou: Float[Array, "boxes truths"],
    truth_valid: Bool[Array, " truths"],
    index: Int[Array, " boxes"],
    label: Int[Array, " boxes"],
) -> tuple[Int[Array, " boxes"], Int[Array, " boxes"]]:
    """Give each ground truth its best box, whatever that overlaps more (SpineNet's release).

    Args:
      iou: IoU of every box with every ground truth, [boxes, truths].
      truth_valid: False for padding, [truths].
      index: ground truth of each box (see `match`).
      label: label of each box.

    Returns:
      `index` and `label` in which the box that overlaps a ground truth most (the first of equals)
      is positive with that ground truth, the first where several share it. A ground truth that no
      box touches gets none.
    """
    iou = jnp.where(truth_valid[None, :], iou, -1.0)
    is_best = jnp.arange(iou.shape[0])[:, None] == iou.argmax(0)[None, :]
    forced = is_best & (iou.max(0) > 0)[None, :]
    is_forced = forced.any(1)
    return (
        jnp.where(is_forced, forced.argmax(1), index),
        jnp.where(is_forced, POSITIVE, label),
    )
