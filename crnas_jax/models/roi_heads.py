"""The box head of Faster R-CNN on a feature pyramid, torchvision's variant."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from crnas_jax.ops import box_coder, boxes, losses, matcher, nms, roi_align, sampler

_CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_MIN_SIDE = 1e-2


@dataclasses.dataclass(frozen=True)
class BoxHeadOptions:
    """Settings of the box head; the defaults are torchvision's.

    Attributes:
      head_channels: of the two dense layers.
      bins: side of the pooled RoI.
      aligned: Detectron2's half-cell shift in RoIAlign.
      canonical_size: an RoI of this side, in pixels, is read from p4.
      foreground_iou: proposals from this IoU on are positive, others negative.
      samples: RoIs drawn per image for the loss.
      positive_fraction: greatest share of positives among them.
      score_threshold: detections must score more.
      nms_iou: of the suppression within a class.
      nms_candidates: best-scoring (RoI, class) pairs that enter it. With 1000 RoIs and a
        threshold of 0.05 there are rarely more, and 100 survivors need far fewer.
      detections: per image.
    """

    head_channels: int = 1024
    bins: int = 7
    aligned: bool = False
    canonical_size: float = 224.0
    foreground_iou: float = 0.5
    samples: int = 512
    positive_fraction: float = 0.25
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    nms_candidates: int = 1000
    detections: int = 100


class BoxHead(nn.Module):
    """Two dense layers, then class logits (0 is the background) and one box for each class."""

    classes: int
    channels: int

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "rois bins bins channels"]
    ) -> tuple[Float[Array, "rois classes"], Float[Array, "rois classes 4"]]:
        x = pooled.reshape(pooled.shape[0], -1)
        dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def dense(x, features, init, name):
            return nn.Dense(features, dtype=x.dtype, kernel_init=init, name=name)(x)

        x = nn.relu(dense(x, self.channels, dense_init, "fc6"))
        x = nn.relu(dense(x, self.channels, dense_init, "fc7"))
        number = self.classes + 1
        logits = dense(x, number, nn.initializers.normal(0.01), "class").astype(jnp.float32)
        deltas = dense(x, 4 * number, nn.initializers.normal(0.001), "box").astype(jnp.float32)
        return logits, deltas.reshape(-1, number, 4)


def pool(
    pyramid, rois: Float[Array, "batch rois 4"], canvas: tuple[int, int], options: BoxHeadOptions
):
    """RoI features [batch * rois, bins, bins, channels] from p2..p5."""
    maps = pyramid[:4]
    levels = roi_align.roi_levels(rois, len(maps), options.canonical_size)
    pooled = roi_align.multilevel_roi_align(
        maps, rois, levels, canvas, options.bins, options.aligned
    )
    return pooled.reshape(-1, *pooled.shape[2:])


def sample_rois(
    keys: Key[Array, " batch"],
    proposals: Float[Array, "batch proposals 4"],
    proposal_valid: Bool[Array, "batch proposals"],
    truth: Float[Array, "batch truths 4"],
    labels: Int[Array, "batch truths"],
    truth_valid: Bool[Array, "batch truths"],
    options: BoxHeadOptions,
):
    """Draws the RoIs of the loss from the proposals and the ground truth itself.

    Returns:
      RoIs [batch, samples, 4], their labels (0 background) and box targets, and which are real.
    """

    def image(key, proposals, proposal_valid, truth, labels, truth_valid):
        candidates = jnp.concatenate([proposals, truth])
        valid = jnp.concatenate([proposal_valid, truth_valid])
        overlap = boxes.iou(candidates, truth)
        iou = options.foreground_iou
        index, label = matcher.match(overlap, truth_valid, iou, iou, low_quality=False)
        label = jnp.where(valid, label, matcher.BETWEEN)
        drawn, sampled, positive = sampler.sample(
            key, label, options.samples, options.positive_fraction
        )
        rois, matched = candidates[drawn], index[drawn]
        targets = box_coder.encode(truth[matched], rois, _CODER_WEIGHTS)
        targets = jnp.where(positive[:, None], targets, 0)
        return rois, jnp.where(positive, labels[matched], 0), targets, sampled

    return jax.vmap(image)(keys, proposals, proposal_valid, truth, labels, truth_valid)


def box_losses(outputs, labels, targets, sampled):
    """Classification and box loss over all sampled RoIs of the batch."""
    return losses.box_head_losses(
        *outputs, labels.reshape(-1), targets.reshape(-1, 4), sampled.reshape(-1)
    )


def postprocess(
    outputs,
    rois: Float[Array, "batch rois 4"],
    roi_valid: Bool[Array, "batch rois"],
    image_size: Int[Array, "batch 2"],
    options: BoxHeadOptions,
) -> dict[str, Array]:
    """Detections: `boxes` [batch, detections, 4] in canvas pixels, `scores`, `labels`, `valid`."""
    logits, deltas = outputs
    batch, number = rois.shape[:2]
    scores = jax.nn.softmax(logits, -1)[:, 1:].reshape(batch, number, -1)
    deltas = deltas[:, 1:].reshape(batch, number, -1, 4)
    classes = scores.shape[-1]

    def image(scores, deltas, rois, roi_valid, size):
        scores = jnp.where(roi_valid[:, None], scores, 0.0).reshape(-1)
        score, index = jax.lax.top_k(scores, min(options.nms_candidates, scores.shape[0]))
        candidates = box_coder.decode(
            deltas.reshape(-1, 4)[index], rois[index // classes], _CODER_WEIGHTS
        )
        candidates = boxes.clip(candidates, size)
        valid = (score > options.score_threshold) & boxes.larger_than(candidates, _MIN_SIDE)
        label = index % classes + 1
        keep = nms.nms(candidates, score, valid, options.nms_iou, label)
        best, order = jax.lax.top_k(
            jnp.where(keep, score, -1.0), min(options.detections, score.shape[0])
        )
        valid = best > 0
        found = {
            "boxes": jnp.where(valid[:, None], candidates[order], 0),
            "scores": jnp.where(valid, best, 0),
            "labels": jnp.where(valid, label[order], 0),
            "valid": valid,
        }
        missing = options.detections - best.shape[0]
        return {
            name: jnp.pad(a, ((0, missing), *(((0, 0),) * (a.ndim - 1))))
            for name, a in found.items()
        }

    return jax.vmap(image)(scores, deltas, rois, roi_valid, image_size)
