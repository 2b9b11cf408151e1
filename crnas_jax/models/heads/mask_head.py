"""The mask head of Mask R-CNN (arXiv 1703.06870), torchvision's variant."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from crnas_jax.models.layers import Conv, Upsampling
from crnas_jax.ops import losses, masks
from crnas_jax.runtime.options import check_counts


@dataclasses.dataclass(frozen=True)
class MaskHeadOptions:
    """Settings of the mask head.

    Attributes:
      channels: channels of its convolutions.
      num_convolutions: number of 3x3 convolutions before the up-sampling.
      pool_size: side of the pooled RoI; masks have twice as many cells.
    """

    channels: int = 256
    num_convolutions: int = 4
    pool_size: int = 14

    def __post_init__(self):
        check_counts(self, "channels", "num_convolutions", "pool_size")


class MaskHead(nn.Module):
    """3x3 convolutions, a transposed 2x2/2 one, and a mask for each class (class 0, the
    background, is unused).
    """

    num_classes: int
    options: MaskHeadOptions

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "rois bins bins channels"]
    ) -> Float[Array, "rois size size classes"]:
        x, width = pooled, self.options.channels
        for index in range(self.options.num_convolutions):
            x = nn.relu(Conv(width, 3, use_bias=True, name=f"conv{index + 1}")(x))
        x = nn.relu(Upsampling(width, name="upsampling")(x))
        return Conv(self.num_classes + 1, 1, use_bias=True, name="logits")(x).astype(jnp.float32)


def mask_loss(
    logits: Float[Array, "all_rois size size classes"],
    samples: dict[str, Array],
    counted: Bool[Array, "batch rois"],
    crops: UInt8[Array, "batch truths m m"],
    truth: Float[Array, "batch truths 4"],
    aligned: bool,
) -> Float[Array, ""]:
    """Return the loss over the positives among the counted RoIs.

    Args:
      logits: logits of the RoIs of all images.
      samples: see `box_head.sample_rois`, cut to the RoIs of the logits.
      counted: RoIs that count.
      crops: masks of the ground truth, see `ops.masks`.
      truth: ground truth boxes that the crops cover, xyxy.
      aligned: see `ops.masks.targets`.
    """
    mask_size = logits.shape[1]
    targets = jax.vmap(lambda *image: masks.targets(*image, mask_size, aligned))(
        crops, truth, samples["rois"], samples["matched"]
    )
    labels = samples["labels"].reshape(-1)
    positive = counted.reshape(-1) & (labels > 0)
    return losses.mask_loss(logits, labels, targets.reshape(-1, mask_size, mask_size), positive)


def mask_probabilities(
    logits: Float[Array, "all_rois size size classes"], labels: Int[Array, "batch rois"]
) -> Float[Array, "batch rois size size"]:
    """Return the mask of each detection's class, 0..1."""
    class_logits = jnp.take_along_axis(logits, labels.reshape(-1)[:, None, None, None], -1)[..., 0]
    return jax.nn.sigmoid(class_logits).reshape(*labels.shape, *class_logits.shape[1:])
