"""Losses of the detection heads, in torchvision's and SpineNet's variants."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

BOX_BETA = 1 / 9
_GIOU_EPSILON = 1e-7


def smooth_l1(error: Float[Array, "*shape"], beta: float = BOX_BETA) -> Float[Array, "*shape"]:
    """Return the smooth L1 loss of each error (Fast R-CNN, arXiv 1504.08083, equation 3).

    Args:
      error: predictions minus targets.
      beta: absolute error below which the loss is quadratic; above it is linear.
    """
    size = jnp.abs(error)
    return jnp.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def rpn_losses(
    logits: Float[Array, "images samples"],
    deltas: Float[Array, "images samples 4"],
    targets: Float[Array, "images samples 4"],
    sampled: Bool[Array, "images samples"],
    positive: Bool[Array, "images samples"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the RPN's losses over sampled anchors (Faster R-CNN, arXiv 1506.01497, equation 1).

    Args:
      logits: objectness logits, [images, samples].
      deltas: predicted box deltas, [images, samples, 4].
      targets: encoded ground truth, [images, samples, 4].
      sampled: entries that hold a sampled anchor, [images, samples].
      positive: sampled entries that are matched to an object, [images, samples].

    Returns:
      Objectness loss and box loss, both sums divided by the number of anchors sampled in the batch.
    """
    num_sampled = jnp.maximum(sampled.sum(), 1)
    objectness = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
    box = smooth_l1(deltas - targets).sum(-1)
    objectness_loss = jnp.where(sampled, objectness, 0).sum() / num_sampled
    box_loss = jnp.where(positive, box, 0).sum() / num_sampled
    return objectness_loss, box_loss


def box_head_losses(
    logits: Float[Array, "rois classes"],
    deltas: Float[Array, "rois boxes 4"],
    labels: Int[Array, " rois"],
    targets: Float[Array, "rois 4"],
    sampled: Bool[Array, " rois"],
    beta: float = BOX_BETA,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Compute the box head's losses over sampled RoIs (Fast R-CNN, arXiv 1504.08083, equation 1).

    Args:
      logits: class logits, [rois, classes].
      deltas: predicted box deltas, [rois, classes, 4], or [rois, 1, 4] where all classes share one
        box.
      labels: class of each RoI, 0 for the background, [rois].
      targets: encoded ground truth, [rois, 4].
      sampled: entries that hold a sampled RoI, [rois].
      beta: where the smooth L1 loss turns linear.
      label_smoothing: share of the target that is spread over all classes.

    Returns:
      Cross-entropy and box loss, both sums divided by the number of sampled RoIs. The box loss is
      that of the positives (label above 0), from the deltas of their class.
    """
    num_sampled = jnp.maximum(sampled.sum(), 1)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing:
        uniform = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
        cross_entropy += label_smoothing * (uniform - cross_entropy)
    box_index = labels if deltas.shape[1] > 1 else jnp.zeros_like(labels)
    class_deltas = jnp.take_along_axis(deltas, box_index[:, None, None], 1)[:, 0]
    box = smooth_l1(class_deltas - targets, beta).sum(-1)
    positive = sampled & (labels > 0)
    class_loss = jnp.where(sampled, cross_entropy, 0).sum() / num_sampled
    box_loss = jnp.where(positive, box, 0).sum() / num_sampled
    return class_loss, box_loss


def mask_loss(
    logits: Float[Array, "rois size size classes"],
    labels: Int[Array, " rois"],
    targets: Float[Array, "rois size size"],
    positive: Bool[Array, " rois"],
) -> Float[Array, ""]:
    """Compute the mask head's binary cross-entropy (Mask R-CNN, arXiv 1703.06870, section 3).

    Args:
      logits: mask logits of every class, [rois, size, size, classes].
      labels: index into the classes of `logits` for each RoI, [rois].
      targets: share of each cell that the object covers, 0..1, [rois, size, size].
      positive: entries that hold an RoI matched to an object, [rois].

    Returns:
      Mean over the cells of the positives, from the logits of their class.
    """
    class_logits = jnp.take_along_axis(logits, labels[:, None, None, None], -1)[..., 0]
    cells = optax.sigmoid_binary_cross_entropy(class_logits, targets).mean((1, 2))
    return jnp.where(positive, cells, 0).sum() / jnp.maximum(positive.sum(), 1)


def focal(
    logits: Float[Array, "*shape"],
    targets: Bool[Array, "*shape"],
    alpha: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Float[Array, "*shape"]:
    """Return the focal loss of each logit (RetinaNet, arXiv 1708.02002, equation 5).

    Args:
      logits: logits of independent classes.
      targets: whether each class is the right one.
      alpha: weight of the right classes; 1 - alpha is that of the wrong ones.
      gamma: exponent of the share that is missing to certainty.
      label_smoothing: share by which the targets 0 and 1 of the cross-entropy move to 1/2.
    """
    signed = jnp.where(targets, logits, -logits)  # above 0 where the class is seen rightly
    missing = jnp.exp(gamma * jax.nn.log_sigmoid(-signed))
    cross_entropy = -jax.nn.log_sigmoid(signed)
    if label_smoothing:
        cross_entropy += label_smoothing / 2 * signed
    return jnp.where(targets, alpha, 1 - alpha) * missing * cross_entropy


def huber(error: Float[Array, "*shape"], delta: float) -> Float[Array, "*shape"]:
    """Return Huber's loss of each error: quadratic up to `delta`, then linear with that slope."""
    return delta * smooth_l1(error, delta)


def giou(
    boxes: Float[Array, "*batch 4"], targets: Float[Array, "*batch 4"]
) -> Float[Array, "*batch"]:
    """Return 1 - GIoU of each pair of boxes (arXiv 1902.09630), torchvision's form.

    Args:
      boxes: predicted boxes, xyxy.
      targets: ground truth, xyxy.
    """
    sides = jnp.maximum(
        jnp.minimum(boxes[..., 2:], targets[..., 2:])
        - jnp.maximum(boxes[..., :2], targets[..., :2]),
        0,
    )
    intersection = sides[..., 0] * sides[..., 1]
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, targets)]
    union = sum(areas) - intersection
    hull = jnp.maximum(boxes[..., 2:], targets[..., 2:]) - jnp.minimum(
        boxes[..., :2], targets[..., :2]
    )
    hull_area = hull[..., 0] * hull[..., 1]
    iou = intersection / (union + _GIOU_EPSILON)
    return 1 - iou + (hull_area - union) / (hull_area + _GIOU_EPSILON)
