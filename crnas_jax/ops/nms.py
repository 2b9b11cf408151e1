"""Greedy non-maximum suppression without a loop over boxes."""

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
