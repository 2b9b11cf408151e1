"""Draws a fixed number of positives and negatives for a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from crnas_jax.ops import matcher


def sample(
    key: Key[Array, ""], label: Int[Array, " boxes"], number: int, positive_fraction: float
) -> tuple[Int[Array, " number"], Bool[Array, " number"], Bool[Array, " number"]]:
    """Up to `number` boxes: at most `positive_fraction` positive, then negatives.

    Args:
      key: of this image and step.
      label: `matcher.POSITIVE`, `NEGATIVE` or anything else for boxes not to be drawn.
      number: of entries returned; fewer boxes than that leave invalid entries.
      positive_fraction: the greatest share of positives.

    Returns:
      Indices of the drawn boxes, without repetition, positives first; whether each entry is a
      drawn box; whether it is a positive.
    """
    boxes = label.shape[0]
    draw = jax.random.uniform(key, (boxes,))
    positive, negative = label == matcher.POSITIVE, label == matcher.NEGATIVE
    # Rank among the positives decides who fits under the cap: 3 > 2 > 1 orders the final top-k.
    most = min(int(number * positive_fraction), boxes)
    first, chosen = jax.lax.top_k(jnp.where(positive, draw, -1.0), most)
    priority = jnp.where(negative, 1.0 + draw, 0.0)
    priority = priority.at[chosen].add(jnp.where(first >= 0, 3.0 + draw[chosen], 0.0))
    taken, indices = jax.lax.top_k(priority, min(number, boxes))
    missing = number - indices.shape[0]
    taken, indices = jnp.pad(taken, (0, missing)), jnp.pad(indices, (0, missing))
    return indices, taken > 0.5, taken > 2.5
