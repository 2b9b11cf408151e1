"""Draw a fixed number of positives and negatives for a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from crnas_jax.ops import matcher


def sample(
    key: Key[Array, ""], label: Int[Array, " boxes"], num_samples: int, positive_fraction: float
) -> tuple[Int[Array, " num_samples"], Bool[Array, " num_samples"], Bool[Array, " num_samples"]]:
    """Sample boxes for a loss (Faster R-CNN, arXiv 1506.01497, section 3.1.3).

    At most `positive_fraction` of the entries are positives; negatives fill the rest.

    Args:
      key: random key for this image and step.
      label: `matcher.POSITIVE`, `matcher.NEGATIVE`, or anything else for boxes that are not to be
        drawn, [boxes].
      num_samples: number of entries returned; where fewer boxes can be drawn, invalid entries
        follow.
      positive_fraction: largest share of positives.

    Returns:
      Indices of the drawn boxes, without repetition, positives first; whether each entry is a
      drawn box; whether it is a positive; all [num_samples].
    """
    num_boxes = label.shape[0]
    draw = jax.random.uniform(key, (num_boxes,))
    positive, negative = label == matcher.POSITIVE, label == matcher.NEGATIVE
    # Drawn positives get a priority above 3, negatives one between 1 and 2, all others 0: the
    # second top-k takes them in this order.
    max_positives = min(int(num_samples * positive_fraction), num_boxes)
    best, chosen = jax.lax.top_k(jnp.where(positive, draw, -1.0), max_positives)
    priority = jnp.where(negative, 1.0 + draw, 0.0)
    priority = priority.at[chosen].add(jnp.where(best >= 0, 3.0 + draw[chosen], 0.0))
    priority, indices = jax.lax.top_k(priority, min(num_samples, num_boxes))
    num_missing = num_samples - indices.shape[0]
    priority, indices = jnp.pad(priority, (0, num_missing)), jnp.pad(indices, (0, num_missing))
    return indices, priority > 0.5, priority > 2.5
