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
    """Which boxes greedy NMS keeps.

    Args:
      boxes: xyxy.
      scores: higher goes first; of equals the lower index.
      valid: False entries are neither kept nor suppress.
      threshold: a box is suppressed by a kept better one with IoU above it.
      group: boxes suppress only within their group (class or level); one group when None.

    A box's fate depends only on better boxes, so the greedy answer is the one fixed point of
    "kept unless a kept better box overlaps". Iterating to it settles at least one more box of each
    chain a round: few rounds of dense work instead of n rounds of little, as accelerators want it.
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
        new = sorted_valid & ~(suppresses & keep[:, None]).any(0)
        return new, (new != keep).any()

    keep, _ = jax.lax.while_loop(lambda state: state[1], settle, (sorted_valid, jnp.array(True)))
    return jnp.zeros_like(keep).at[order].set(keep)


def best_survivors(
    scores: Float[Array, " n"],
    candidates: Callable,
    threshold: float,
    at_once: int,
    number: int,
) -> tuple[Float[Array, "number 4"], Float[Array, " number"], Int[Array, " number"]]:
    """The `number` best boxes that greedy NMS within groups keeps of many candidates.

    Candidates enter by descending score, `at_once` of them at a time, until there are enough
    survivors or no candidates: the answer is that of suppression over all of them, the work nearly
    always that of the first lot.

    Args:
      scores: of all candidates; those of 0 are none.
      candidates: from indices [k] into `scores` to their boxes [k, 4], whether each counts [k], and
        their groups [k].
      threshold: a box is suppressed by a kept better one of its group with IoU above it.
      at_once: candidates in a lot.
      number: of survivors wanted.

    Returns:
      Boxes, scores and groups, best first; where there are fewer, zeros follow.
    """
    at_once = min(at_once, scores.shape[0])

    def unfinished(state):
        scores, _, found, _ = state
        return (found[number - 1] <= 0) & (scores.max() > 0)

    def lot(state):
        scores, kept, kept_scores, kept_groups = state
        score, index = jax.lax.top_k(scores, at_once)
        boxes, counts, group = candidates(index)
        same = group[:, None] == kept_groups[None, :]
        beaten = ((iou(boxes, kept) > threshold) & same & (kept_scores > 0)[None, :]).any(1)
        keep = nms(boxes, score, (score > 0) & counts & ~beaten, threshold, group)
        # Earlier lots score higher, so the order of the survivors stays.
        score = jnp.concatenate([kept_scores, jnp.where(keep, score, 0.0)])
        best, order = jax.lax.top_k(score, number)
        boxes, group = jnp.concatenate([kept, boxes]), jnp.concatenate([kept_groups, group])
        return scores.at[index].set(0.0), boxes[order], best, group[order]

    none = (
        scores,
        jnp.zeros((number, 4)),
        jnp.zeros(number, scores.dtype),
        jnp.zeros(number, jnp.int32),
    )
    _, boxes, best, group = jax.lax.while_loop(unfinished, lot, none)
    found = best > 0
    return jnp.where(found[:, None], boxes, 0), best, jnp.where(found, group, 0)
