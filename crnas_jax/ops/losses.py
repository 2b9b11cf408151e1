"""Losses of the detection heads (torchvision's variants)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

BOX_BETA = 1 / 9


def smooth_l1(error: Float[Array, "*shape"], beta: float = BOX_BETA) -> Float[Array, "*shape"]:
    """Quadratic below `beta`, linear above (Fast R-CNN, arXiv 1504.08083, equation 3)."""
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def rpn_losses(
    logits: Float[Array, "images samples"],
    deltas: Float[Array, "images samples 4"],
    targets: Float[Array, "images samples 4"],
    sampled: Bool[Array, "images samples"],
    positive: Bool[Array, "images samples"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Objectness and box loss of the sampled anchors, both over the number sampled in the batch."""
    number = jnp.maximum(sampled.sum(), 1)
    objectness = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
    box = smooth_l1(deltas - targets).sum(-1)
    return jnp.where(sampled, objectness, 0).sum() / number, jnp.where(
        positive, box, 0
    ).sum() / number


def box_head_losses(
    logits: Float[Array, "rois classes"],
    deltas: Float[Array, "rois classes 4"],
    labels: Int[Array, " rois"],
    targets: Float[Array, "rois 4"],
    sampled: Bool[Array, " rois"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy and, for positives (label above 0), box loss, over all sampled RoIs.

    The box deltas are those of the RoI's own class; class 0 is the background.
    """
    number = jnp.maximum(sampled.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = jnp.take_along_axis(deltas, labels[:, None, None], 1)[:, 0]
    box = smooth_l1(own - targets).sum(-1)
    positive = sampled & (labels > 0)
    return jnp.where(sampled, cross_entropy, 0).sum() / number, jnp.where(
        positive, box, 0
    ).sum() / number
