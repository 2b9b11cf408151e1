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
    deltas: Float[Array, "rois boxes 4"],
    labels: Int[Array, " rois"],
    targets: Float[Array, "rois 4"],
    sampled: Bool[Array, " rois"],
    beta: float = BOX_BETA,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy and, for positives (label above 0), box loss, over all sampled RoIs.

    The box deltas are those of the RoI's own class, or the only ones; class 0 is the background.
    """
    number = jnp.maximum(sampled.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    own = labels if deltas.shape[1] > 1 else jnp.zeros_like(labels)
    own = jnp.take_along_axis(deltas, own[:, None, None], 1)[:, 0]
    box = smooth_l1(own - targets, beta).sum(-1)
    positive = sampled & (labels > 0)
    return jnp.where(sampled, cross_entropy, 0).sum() / number, jnp.where(
        positive, box, 0
    ).sum() / number


def mask_loss(
    logits: Float[Array, "rois size size classes"],
    labels: Int[Array, " rois"],
    targets: Float[Array, "rois size size"],
    positive: Bool[Array, " rois"],
) -> Float[Array, ""]:
    """Binary cross-entropy of each positive's own class, the mean over their cells.

    Mask R-CNN, arXiv 1703.06870, section 3. Targets are coverages of 0..1.
    """
    own = jnp.take_along_axis(logits, labels[:, None, None, None], -1)[..., 0]
    cells = optax.sigmoid_binary_cross_entropy(own, targets).mean((1, 2))
    return jnp.where(positive, cells, 0).sum() / jnp.maximum(positive.sum(), 1)
