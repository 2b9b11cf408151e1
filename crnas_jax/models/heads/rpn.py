"""Region proposal network (arXiv 1506.01497) on a feature pyramid, torchvision's variant."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from crnas_jax.models.layers import Conv
from crnas_jax.ops import anchors, box_coder, boxes, losses, matcher, nms, sampler
from crnas_jax.runtime.options import (
    check_counts,
    check_fractions,
    check_length,
    check_positive,
)

_CODER_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_MIN_SIDE = 1e-3


@dataclasses.dataclass(frozen=True)
class RPNOptions:
    """Settings of the proposal network; the defaults are torchvision's.

    Attributes:
      anchor_sizes: anchor side for each of the neck's five levels, in pixels.
      positive_iou: anchors with at least this IoU are positive.
      negative_iou: anchors with a lower IoU are negative.
      num_samples: anchors drawn per image for the loss.
      positive_fraction: greatest share of positives among them.
      nms_iou: IoU threshold of the suppression within a level.
      pre_nms: proposals per level before suppression, in training and at test time.
      post_nms: proposals per image after suppression, in training and at test time.
    """

    anchor_sizes: tuple[float, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    positive_iou: float = 0.7
    negative_iou: float = 0.3
    num_samples: int = 256
    positive_fraction: float = 0.5
    nms_iou: float = 0.7
    pre_nms: tuple[int, int] = (2000, 1000)
    post_nms: tuple[int, int] = (2000, 1000)

    def __post_init__(self):
        check_length(self, "anchor_sizes", 5)
        check_length(self, "pre_nms", 2)
        check_length(self, "post_nms", 2)
        check_positive(self, "anchor_sizes")
        check_fractions(self, "positive_iou", "negative_iou", "positive_fraction", "nms_iou")
        check_counts(self, "num_samples", "pre_nms", "post_nms")


class RPNHead(nn.Module):
    """Objectness logits and box deltas for every anchor; one head for all levels.

    Attributes:
      channels: channels of the shared 3x3 convolution.
    """

    channels: int

    @nn.compact
    def __call__(
        self, pyramid: tuple[Float[Array, "batch _ _ channels"], ...]
    ) -> list[tuple[Float[Array, "batch _"], Float[Array, "batch _ 4"]]]:
        """Return for each level logits [batch, anchors] and deltas [batch, anchors, 4]."""
        num_anchors, init = len(anchors.RATIOS), nn.initializers.normal(0.01)
        shared = Conv(self.channels, 3, use_bias=True, kernel_init=init, name="conv")
        objectness = Conv(num_anchors, 1, use_bias=True, kernel_init=init, name="objectness")
        box = Conv(4 * num_anchors, 1, use_bias=True, kernel_init=init, name="box")
        outputs = []
        for features in pyramid:
            x = nn.relu(shared(features))
            logits, deltas = (head(x).astype(jnp.float32) for head in (objectness, box))
            outputs.append((logits.reshape(len(x), -1), deltas.reshape(len(x), -1, 4)))
        return outputs


def level_anchors(
    canvas: tuple[int, int], pyramid, options: RPNOptions
) -> tuple[Float[np.ndarray, "_ 4"], ...]:
    """Return each level's anchors as NumPy arrays [anchors, 4]: constants of the program."""
    return anchors.pyramid_anchors(
        canvas, tuple(level.shape[1:3] for level in pyramid), options.anchor_sizes
    )


def proposals(
    outputs,
    anchors_by_level,
    image_size: Int[Array, "batch 2"],
    options: RPNOptions,
    training: bool,
) -> tuple[Float[Array, "batch proposals 4"], Bool[Array, "batch proposals"]]:
    """Return each image's best boxes, xyxy, by descending objectness, and which are real.

    No gradient flows through them.

    Args:
      outputs: what `RPNHead` returns.
      anchors_by_level: see `level_anchors`.
      image_size: (height, width) of each image on the canvas.
      options: settings.
      training: whether the training counts of `pre_nms` and `post_nms` apply.
    """
    pre_nms, post_nms = (pair[0 if training else 1] for pair in (options.pre_nms, options.post_nms))
    logits, deltas, references = [], [], []
    num_boxes = min(pre_nms, max(len(level) for level in anchors_by_level))
    for (level_logits, level_deltas), level in zip(outputs, anchors_by_level, strict=True):
        score, index = jax.lax.top_k(level_logits, min(num_boxes, len(level)))
        missing = num_boxes - score.shape[1]
        # Small levels are padded, so that one batched suppression serves all levels.
        logits.append(jnp.pad(score, ((0, 0), (0, missing)), constant_values=-jnp.inf))
        chosen = jnp.take_along_axis(level_deltas, index[..., None], 1)
        deltas.append(jnp.pad(chosen, ((0, 0), (0, missing), (0, 0))))
        references.append(jnp.pad(jnp.asarray(level)[index], ((0, 0), (0, missing), (0, 0))))
    logits, deltas, references = (jnp.stack(part, 1) for part in (logits, deltas, references))
    logits, deltas = jax.lax.stop_gradient((logits, deltas))

    def image(logits, deltas, references, size):
        candidates = boxes.clip(box_coder.decode(deltas, references, _CODER_WEIGHTS), size)
        valid = jnp.isfinite(logits) & boxes.larger_than(candidates, _MIN_SIDE)
        keep = jax.vmap(nms.nms, (0, 0, 0, None))(candidates, logits, valid, options.nms_iou)
        score = jnp.where(keep, logits, -jnp.inf).reshape(-1)
        best, index = jax.lax.top_k(score, min(post_nms, score.shape[0]))
        return candidates.reshape(-1, 4)[index], jnp.isfinite(best)

    return jax.vmap(image)(logits, deltas, references, image_size)


def rpn_losses(
    keys: Key[Array, " batch"],
    outputs,
    anchors_by_level,
    truth: Float[Array, "batch truths 4"],
    truth_valid: Bool[Array, "batch truths"],
    image_valid: Bool[Array, " batch"],
    options: RPNOptions,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return objectness and box loss over the anchors sampled from images that are not padding.

    Args:
      keys: a random key for each image.
      outputs: what `RPNHead` returns.
      anchors_by_level: see `level_anchors`.
      truth: ground truth boxes, xyxy.
      truth_valid: False for padded boxes.
      image_valid: False for padding images.
      options: settings.
    """
    references = jnp.asarray(np.concatenate(anchors_by_level))
    logits, deltas = (jnp.concatenate(part, 1) for part in zip(*outputs, strict=True))

    def image(key, logits, deltas, truth, truth_valid):
        overlap = boxes.iou(references, truth)
        index, label = matcher.match(
            overlap, truth_valid, options.positive_iou, options.negative_iou, low_quality=True
        )
        drawn, sampled, positive = sampler.sample(
            key, label, options.num_samples, options.positive_fraction
        )
        targets = box_coder.encode(truth[index[drawn]], references[drawn], _CODER_WEIGHTS)
        targets = jnp.where(positive[:, None], targets, 0)
        return logits[drawn], deltas[drawn], targets, sampled, positive

    logits, deltas, targets, sampled, positive = jax.vmap(image)(
        keys, logits, deltas, truth, truth_valid
    )
    sampled &= image_valid[:, None]
    return losses.rpn_losses(logits, deltas, targets, sampled, positive & image_valid[:, None])
