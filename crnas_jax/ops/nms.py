"""Greedy non-maximum suppression without a loop over boxes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from crnas_jax.ops.boxes import iou


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    valid: Bool[Array, " n"],
    threshold: float,
    group: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Return which boxes greedy NMS keeps.

    Whether a box is kept depends only on better boxes, so the greedy answer is the one fixed point
    of "kept unless a kept better box overlaps". Each round of the iteration settles at least one
    more box of each chain: few rounds of dense work instead of n rounds of little, which suits
    accelerators.

    Args:
      boxes: xyxy, pixels, [n, 4].
      scores: scores, [n]; a higher one goes first, of equals the lower index.
      valid: False for entries that are neither kept nor suppress any, [n].
      threshold: IoU above which a kept better box suppresses a box.
      group: class or level, [n]; boxes suppress only within their group. None for one group.

    Returns:
      True for the boxes that are kept, [n].
    """
    order = jnp.argsort(jnp.where(valid, -scores, jnp.inf))
    sorted_boxes, sorted_valid = boxes[order], valid[order]
    n = boxes.shape[0]
    better = jnp.arange(n)[:, None] < jnp.arange(n)[None, :]
    suppresses = (iou(sorted_boxes, sorted_boxes) > threshold) & better
    if group is not None:
        suppresses &= group[order][:, None] == group[order][None, :]

    def settle(state):
        keep, _ = state
        updated = sorted_valid & ~(suppresses & keep[:, None]).any(0)
        return updated, (updated != keep).any()

    keep, _ = jax.lax.while_loop(lambda state: state[1], settle, (sorted_valid, jnp.array(True)))
    return jnp.zeros_like(keep).at[order].set(keep)


def best_survivors(
    scores: Float[Array, " n"],
    candidates: Callable,
    threshold: float,
    candidates_per_round: int,
    max_boxes: int,
) -> tuple[Float[Array, "max_boxes 4"], Float[Array, " max_boxes"], Int[Array, " max_boxes"]]:
    """Return the best boxes that greedy NMS within groups keeps of many candidates.

    Candidates enter by descending score, `candidates_per_round` at a time, until there are
    `max_boxes` survivors or no candidates. The answer is that of suppression over all of them; the
    work is nearly always that of the first round.

    Args:
      scores: scores of all candidates, [n]; entries with a score of 0 are no candidates.
      candidates: function from indices [k] into `scores` to the boxes (xyxy, pixels) [k, 4],
        whether each counts [k], and the groups [k].
      threshold: IoU above which a kept better box of the same group suppresses a box.
      candidates_per_round: number of candidates that enter in one round.
      max_boxes: number of boxes returned.

    Returns:
      Boxes [max_boxes, 4], scores and groups [max_boxes], best first; where there are fewer, zeros
      follow.
    """
    candidates_per_round = min(candidates_per_round, scores.shape[0])

    def unfinished(state):
        scores, _, best_scores, _ = state
        return (best_scores[max_boxes - 1] <= 0) & (scores.max() > 0)

    def add_candidates(state):
        scores, best_boxes, best_scores, best_groups = state
        score, index = jax.lax.top_k(scores, candidates_per_round)
        boxes, counts, group = candidates(index)
        same_group = group[:, None] == best_groups[None, :]
        overlaps = (iou(boxes, best_boxes) > threshold) & same_group
        suppressed = (overlaps & (best_scores > 0)[None, :]).any(1)
        keep = nms(boxes, score, (score > 0) & counts & ~suppressed, threshold, group)
        # Earlier rounds have higher scores, so the order of the survivors stays.
        score = jnp.concatenate([best_scores, jnp.where(keep, score, 0.0)])
        best, order = jax.lax.top_k(score, max_boxes)
        boxes = jnp.concatenate([best_boxes, boxes])
        group = jnp.concatenate([best_groups, group])
        return scores.at[index].set(0.0), boxes[order], best, group[order]

    start = (
        scores,
        jnp.zeros((max_boxes, 4)),
        jnp.zeros(max_boxes, scores.dtype),
        jnp.zeros(max_boxes, jnp.int32),
    )
    _, boxes, scores, groups = jax.lax.while_loop(unfinished, add_candidates, start)
    is_box = scores > 0
    return jnp.where(is_box[:, None], boxes, 0), scores, jnp.where(is_box, groups, 0)
