"""The mask head of Mask R-CNN (arXiv 1703.06870), torchvision's variant."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from crnas_jax.models.layers import Conv, kaiming_normal
from crnas_jax.ops import losses, masks


@dataclasses.dataclass(frozen=True)
class MaskHeadOptions:
    """Settings of the mask head.

    Attributes:
      channels: of its convolutions.
      convolutions: 3x3, before the up-sampling.
      bins: side of the pooled RoI; masks have twice as many cells.
    """

    channels: int = 256
    convolutions: int = 4
    bins: int = 14


class MaskHead(nn.Module):
    """3x3 convolutions, a transposed 2x2/2 one, and a mask for each class (0, the background's, is
    unused)."""

    classes: int
    options: MaskHeadOptions

    @nn.compact
    def __call__(
        self, pooled: Float[Array, "rois bins bins channels"]
    ) -> Float[Array, "rois size size classes"]:
        x, width = pooled, self.options.channels
        for index in range(self.options.convolutions):
            x = nn.relu(Conv(width, 3, use_bias=True, name=f"conv{index + 1}")(x))
        x = nn.relu(Upsampling(width, name="upsampling")(x))
        return Conv(self.classes + 1, 1, use_bias=True, name="logits")(x).astype(jnp.float32)


class Upsampling(nn.Module):
    """Transposed 2x2 convolution of stride 2: four products, each cell's own.

    `kernel` is [2, 2, in, out]; its [a, b] makes the output cells (2 i + a, 2 j + b).
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "rois height width channels"]):
        shape = (2, 2, x.shape[-1], self.features)
        kernel = self.param("kernel", kaiming_normal, shape).astype(x.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        y = jnp.einsum("rhwi,abio->rhawbo", x, kernel)
        return y.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], self.features) + bias


def mask_loss(
    logits: Float[Array, "all_rois size size classes"],
    samples: dict[str, Array],
    counted,
    crops,
    truth: Float[Array, "batch truths 4"],
    aligned: bool,
) -> Float[Array, ""]:
    """Loss over the positives among `counted`.

    Args:
      logits: of the RoIs of all images.
      samples: see `roi_heads.sample_rois`, cut to the RoIs of the logits.
      counted: bool [batch, rois].
      crops: uint8 [batch, truths, M, M], see `ops.masks`.
      truth: boxes of the crops.
      aligned: see `ops.masks.targets`.
    """
    size = logits.shape[1]
    targets = jax.vmap(lambda *image: masks.targets(*image, size, aligned))(
        crops, truth, samples["rois"], samples["matched"]
    )
    labels = samples["labels"].reshape(-1)
    positive = counted.reshape(-1) & (labels > 0)
    return losses.mask_loss(logits, labels, targets.reshape(-1, size, size), positive)


def probabilities(
    logits: Float[Array, "all_rois size size classes"], labels: Int[Array, "batch rois"]
) -> Float[Array, "batch rois size size"]:
    """The mask of each detection's own class, 0..1."""
    own = jnp.take_along_axis(logits, labels.reshape(-1)[:, None, None, None], -1)[..., 0]
    return jax.nn.sigmoid(own).reshape(*labels.shape, *own.shape[1:])
