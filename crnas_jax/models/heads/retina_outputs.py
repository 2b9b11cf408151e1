"""What becomes of the outputs of RetinaNet's head: losses in training, detections at test time."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.ops import anchors, box_coder, boxes, losses, matcher, nms

# Clipped boxes that lie beside the image are none (torchvision keeps them, without an area).
_MIN_SIDE = 1e-2
_CODER_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_ALPHA = 0.25
# SpineNet: where its box loss turns linear, and its weight.
_HUBER_DELTA, _HUBER_WEIGHT = 0.1, 50.0


def level_anchors(
    canvas: tuple[int, int], grids: Sequence[tuple[int, int]], options: RetinaHeadOptions
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Return the anchors of p3 and the levels after it, NumPy: constants of the program."""
    grids, sizes = tuple(grids), options.anchor_sizes[: len(grids)]
    if options.form != "spinenet":
        return anchors.octave_anchors(canvas, grids, sizes)
    strides = tuple(2**level for level in range(3, 3 + len(grids)))
    return anchors.centred_octave_anchors(strides, grids, sizes)


def retina_losses(
    outputs,
    anchors_by_level,
    truth: Float[Array, "batch truths 4"],
    labels: Int[Array, "batch truths"],
    truth_valid: Bool[Array, "batch truths"],
    image_valid: Bool[Array, " batch"],
    options: RetinaHeadOptions,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return classification and box loss.

    Torchvision's forms divide by the positives of each image and average over images; SpineNet's
    divides by those of the batch plus one, the box loss also by four.

    Args:
      outputs: what `Predictors` returns.
      anchors_by_level: see `level_anchors`.
      truth: ground truth boxes, xyxy.
      labels: classes, from 1.
      truth_valid: False for padded boxes.
      image_valid: False for padding images.
      options: settings.
    """
    references, traits = jnp.asarray(np.concatenate(anchors_by_level)), options.traits
    logits, deltas = (jnp.concatenate(part, 1) for part in zip(*outputs, strict=True))
    is_spinenet = options.form == "spinenet"

    def image(logits, deltas, truth, labels, truth_valid):
        overlap = boxes.iou(references, truth)
        index, label = matcher.match(
            overlap, truth_valid, 0.5, traits.negative_iou, low_quality=not is_spinenet
        )
        if is_spinenet:
            index, label = matcher.force_best(overlap, truth_valid, index, label)
        positive = label == matcher.POSITIVE
        classes = jnp.arange(1, logits.shape[-1] + 1)
        targets = positive[:, None] & (labels[index][:, None] == classes[None, :])
        classification = losses.focal(
            logits, targets, _ALPHA, traits.gamma, options.label_smoothing
        ).sum(1)
        classification = jnp.where(label != matcher.BETWEEN, classification, 0).sum()
        box = jnp.where(positive, _box_loss(deltas, truth[index], references, options), 0).sum()
        return classification, box, positive.sum()

    classification, box, num_positives = jax.vmap(image)(logits, deltas, truth, labels, truth_valid)
    counted = image_valid.astype(jnp.float32)
    if is_spinenet:
        normalizer = (num_positives * counted).sum() + 1
        total = (classification * counted).sum() / normalizer
        return total, _HUBER_WEIGHT * (box * counted).sum() / (4 * normalizer)
    share = counted / jnp.maximum(counted.sum(), 1) / jnp.maximum(num_positives, 1)
    return (classification * share).sum(), (box * share).sum()


def _box_loss(deltas, truth, references, options):
    """Return the loss of every anchor's box against the ground truth that it is matched to."""
    box_loss = options.traits.box_loss
    if box_loss == "giou":
        return losses.giou(box_coder.decode(deltas, references, _CODER_WEIGHTS), truth)
    error = deltas - box_coder.encode(truth, references, _CODER_WEIGHTS)
    return (abs(error) if box_loss == "l1" else losses.huber(error, _HUBER_DELTA)).sum(-1)


def postprocess(
    outputs, anchors_by_level, image_size: Int[Array, "batch 2"], options: RetinaHeadOptions
) -> dict[str, Array]:
    """Turn the outputs into detections, best first; returns what `box_head.postprocess` does.

    Args:
      outputs: what `Predictors` returns.
      anchors_by_level: see `level_anchors`.
      image_size: (height, width) of each image on the canvas.
      options: settings.
    """
    traits = options.traits
    most = options.num_candidates or traits.num_candidates
    logits, deltas = (list(part) for part in zip(*outputs, strict=True))
    references = list(anchors_by_level)
    if not traits.is_by_level:
        logits, deltas = [jnp.concatenate(logits, 1)], [jnp.concatenate(deltas, 1)]
        references = [np.concatenate(references)]

    def best(logits, deltas, anchor_boxes):
        """Return scores, deltas, anchors and classes of the best pairs of anchor and class."""
        # The anchors of the best k pairs are among the k anchors with the best classes.
        _, anchor = jax.lax.top_k(logits.max(1), min(most, len(logits)))
        pairs = logits[anchor].reshape(-1)
        score, pair = jax.lax.top_k(pairs, min(most, len(pairs)))
        anchor, group = anchor[pair // logits.shape[1]], pair % logits.shape[1]
        return jax.nn.sigmoid(score), deltas[anchor], jnp.asarray(anchor_boxes)[anchor], group

    def detect(size, logits, deltas):
        is_finite = jnp.stack([jnp.isfinite(level).all() for level in logits]).all()
        rows = [best(*level) for level in zip(logits, deltas, references, strict=True)]
        scores, chosen, chosen_anchors, groups = (
            jnp.concatenate(part) for part in zip(*rows, strict=True)
        )

        def candidates(index):
            decoded = box_coder.decode(chosen[index], chosen_anchors[index], _CODER_WEIGHTS)
            decoded = boxes.clip(decoded, size)
            return decoded, boxes.larger_than(decoded, _MIN_SIDE), groups[index] + 1

        scores = jnp.where(scores > options.score_threshold, scores, 0.0)
        survivors, score, label = nms.best_survivors(
            scores, candidates, options.nms_iou, options.nms_candidates, options.max_detections
        )
        score = jnp.where(is_finite, score, jnp.nan)
        return {"boxes": survivors, "scores": score, "labels": label, "valid": ~(score <= 0)}

    return jax.vmap(detect)(image_size, logits, deltas)
