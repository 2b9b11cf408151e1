"""The box heads of Faster and Cascade R-CNN on a feature pyramid.

Faster R-CNN (arXiv 1506.01497) in torchvision's variant has one stage; Cascade R-CNN (arXiv
1712.00726) in mmdetection's has three, each of which samples anew among the boxes that the stage
before it refined.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from crnas_jax.ops import box_coder, boxes, losses, matcher, nms, roi_align, sampler
from crnas_jax.runtime.options import (
    check_below_one,
    check_counts,
    check_fractions,
    check_not_negative,
    check_positive,
)

_MIN_SIDE = 1e-2


@dataclasses.dataclass(frozen=True)
class BoxStage:
    """One box head of a detector.

    Attributes:
      foreground_iou: proposals with at least this IoU are positive, others negative.
      coder_weights: factors of the box deltas.
      loss_weight: factor of its losses, masks included.
    """

    foreground_iou: float = 0.5
    coder_weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0)
    loss_weight: float = 1.0


CASCADE_STAGES = (
    BoxStage(),
    BoxStage(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    BoxStage(0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


@dataclasses.dataclass(frozen=True)
class BoxHeadOptions:
    """Settings of the box head; the defaults are torchvision's.

    Attributes:
      stages: one for Faster R-CNN, `CASCADE_STAGES` for Cascade R-CNN.
      class_agnostic: one box for all classes (Cascade R-CNN) instead of one for each.
      loss_beta: where the box loss turns from quadratic to linear (Cascade R-CNN: 1).
      head_channels: channels of the two dense layers.
      pool_size: side of the pooled RoI.
      aligned: Detectron2's half-cell shift in RoIAlign.
      canonical_size: an RoI of this side, in pixels, is read from p4.
      num_samples: RoIs drawn per image for the loss.
      positive_fraction: greatest share of positives among them.
      label_smoothing: share by which the targets of the classification move to 1 over the classes.
      score_threshold: detections must score more.
      nms_iou: IoU threshold of the suppression within a class.
      nms_candidates: best-scoring (RoI, class) pairs that enter it at once; more follow while
        survivors are missing, so the number changes speed and memory alone.
      max_detections: most detections per image.
    """

    stages: tuple[BoxStage, ...] = (BoxStage(),)
    class_agnostic: bool = False
    loss_beta: float = 1 / 9
    head_channels: int = 1024
    pool_size: int = 7
    aligned: bool = False
    canonical_size: float = 224.0
    num_samples: int = 512
    positive_fraction: float = 0.25
    label_smoothing: float = 0.0
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    nms_candidates: int = 1000
    max_detections: int = 100

    def __post_init__(self):
        check_counts(self, "head_channels", "pool_size", "num_samples", "nms_candidates")
        check_counts(self, "max_detections")
        check_positive(self, "canonical_size", "loss_beta")
        check_fractions(self, "positive_fraction", "score_threshold", "nms_iou")
        check_not_negative(self, "label_smoothing")
        check_below_one(self, "label_smoothing")

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Suffix of each stage's heads and losses: none, or 1..3 in a cascade."""
        num_stages = len(self.stages)
        return tuple(f"{stage + 1}" for stage in range(num_stages)) if num_stages > 1 else ("",)

    @property
    def max_positives(self) -> int:
        """RoIs per image that can be positive; the sampler puts them first."""
        return int(self.num_samples * self.positive_fraction)


class BoxHead(nn.Module):
    """Two dense layers, then class logits (0 is the background) and boxes.

    There is one box for each class, the background's unused, or with `class_agnostic` a single one.
    """

    num_classes: int
    channels: int
    class_agnostic: bool = False

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "rois bins bins channels"]
    ) -> tuple[Float[Array, "rois classes"], Float[Array, "rois boxes 4"]]:
        x = pooled.reshape(pooled.shape[0], -1)
        dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def dense(x, features, init, name):
            return nn.Dense(features, dtype=x.dtype, kernel_init=init, name=name)(x)

        x = nn.relu(dense(x, self.channels, dense_init, "fc6"))
        x = nn.relu(dense(x, self.channels, dense_init, "fc7"))
        num_logits = self.num_classes + 1
        logits = dense(x, num_logits, nn.initializers.normal(0.01), "class").astype(jnp.float32)
        num_boxes = 1 if self.class_agnostic else num_logits
        deltas = dense(x, 4 * num_boxes, nn.initializers.normal(0.001), "box").astype(jnp.float32)
        return logits, deltas.reshape(-1, num_boxes, 4)


def pool(
    pyramid,
    rois: Float[Array, "batch rois 4"],
    canvas: tuple[int, int],
    options: BoxHeadOptions,
    pool_size: int,
    lowest_level: int = 2,
) -> Float[Array, "all_rois bins bins channels"]:
    """Pool the features of RoIs from the four finest levels.

    Args:
      pyramid: features of each level, finest first.
      rois: xyxy in pixels of the canvas.
      canvas: (height, width).
      options: settings.
      pool_size: side of the pooled RoI.
      lowest_level: finest level of the pyramid (2 for p2).

    Returns:
      [batch * rois, pool_size, pool_size, channels].
    """
    maps = pyramid[:4]
    canonical = 4 - lowest_level
    levels = roi_align.roi_levels(rois, len(maps), options.canonical_size, canonical)
    pooled = roi_align.multilevel_roi_align(maps, rois, levels, canvas, pool_size, options.aligned)
    return pooled.reshape(-1, *pooled.shape[2:])


def sample_rois(
    keys: Key[Array, " batch"],
    proposals: Float[Array, "batch proposals 4"],
    proposal_valid: Bool[Array, "batch proposals"],
    truth: Float[Array, "batch truths 4"],
    labels: Int[Array, "batch truths"],
    truth_valid: Bool[Array, "batch truths"],
    stage: BoxStage,
    options: BoxHeadOptions,
) -> dict[str, Array]:
    """Draw the RoIs of a stage's loss from the proposals and the ground truth itself.

    Returns:
      `rois` [batch, samples, 4], positives first; their `labels` (0 background), box `targets`,
      index of the ground truth `matched`; and `valid`, `is_truth`: which are real, and which are
      boxes of the ground truth rather than proposals.
    """

    def image(key, proposals, proposal_valid, truth, labels, truth_valid):
        candidates = jnp.concatenate([proposals, truth])
        valid = jnp.concatenate([proposal_valid, truth_valid])
        overlap = boxes.iou(candidates, truth)
        iou = stage.foreground_iou
        index, label = matcher.match(overlap, truth_valid, iou, iou, low_quality=False)
        label = jnp.where(valid, label, matcher.BETWEEN)
        drawn, sampled, positive = sampler.sample(
            key, label, options.num_samples, options.positive_fraction
        )
        rois, matched = candidates[drawn], index[drawn]
        targets = box_coder.encode(truth[matched], rois, stage.coder_weights)
        return {
            "rois": rois,
            "labels": jnp.where(positive, labels[matched], 0),
            "targets": jnp.where(positive[:, None], targets, 0),
            "matched": matched,
            "valid": sampled,
            "is_truth": drawn >= len(proposals),
        }

    return jax.vmap(image)(keys, proposals, proposal_valid, truth, labels, truth_valid)


def box_losses(
    outputs, samples: dict[str, Array], counted: Bool[Array, "batch samples"], options
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return classification and box loss over the counted RoIs of the batch."""
    return losses.box_head_losses(
        *outputs,
        samples["labels"].reshape(-1),
        samples["targets"].reshape(-1, 4),
        counted.reshape(-1),
        options.loss_beta,
        options.label_smoothing,
    )


def refine(
    deltas: Float[Array, "all_rois 1 4"],
    rois: Float[Array, "batch rois 4"],
    image_size: Int[Array, "batch 2"],
    stage: BoxStage,
) -> Float[Array, "batch rois 4"]:
    """Apply a class-agnostic stage's deltas to its RoIs; no gradient flows through the result."""
    decoded = box_coder.decode(deltas.reshape(rois.shape), rois, stage.coder_weights)
    return jax.lax.stop_gradient(jax.vmap(boxes.clip)(decoded, image_size))


def postprocess(
    outputs,
    rois: Float[Array, "batch rois 4"],
    roi_valid: Bool[Array, "batch rois"],
    image_size: Int[Array, "batch 2"],
    options: BoxHeadOptions,
) -> dict[str, Array]:
    """Turn the last stage's outputs into detections, best first.

    Args:
      outputs: logits (the mean over all stages) and deltas of the last stage.
      rois: RoIs of the last stage.
      roi_valid: which of them are real.
      image_size: (height, width) of each image on the canvas.
      options: settings.

    Returns:
      `boxes` [batch, detections, 4] in canvas pixels, `scores`, `labels` (from 1), `valid`. The
      scores of an image whose logits are not finite are NaN and valid, so that callers see them.
    """
    logits, deltas = outputs
    batch, num_rois = rois.shape[:2]
    is_finite = jnp.isfinite(logits.reshape(batch, -1)).all(1)
    scores = jax.nn.softmax(logits, -1)[:, 1:].reshape(batch, num_rois, -1)
    num_classes = scores.shape[-1]
    deltas = deltas if options.class_agnostic else deltas[:, 1:]
    deltas = deltas.reshape(batch, num_rois, -1, 4)
    coder_weights = options.stages[-1].coder_weights

    def image(scores, deltas, rois, roi_valid, size, is_finite):
        def candidates(index):
            roi = index // num_classes
            class_deltas = deltas[roi, index % deltas.shape[1]]
            decoded = box_coder.decode(class_deltas, rois[roi], coder_weights)
            decoded = boxes.clip(decoded, size)
            return decoded, boxes.larger_than(decoded, _MIN_SIDE), index % num_classes + 1

        scores = jnp.where(roi_valid[:, None], scores, 0.0).reshape(-1)
        scores = jnp.where(scores > options.score_threshold, scores, 0.0)
        survivors, score, label = nms.best_survivors(
            scores, candidates, options.nms_iou, options.nms_candidates, options.max_detections
        )
        score = jnp.where(is_finite, score, jnp.nan)
        return {"boxes": survivors, "scores": score, "labels": label, "valid": ~(score <= 0)}

    return jax.vmap(image)(scores, deltas, rois, roi_valid, image_size, is_finite)
