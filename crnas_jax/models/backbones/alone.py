"""A backbone that takes images and returns features, for detectors that are not of this package."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from crnas_jax.arch.staged import Arch
from crnas_jax.models.backbones.staged import StagedBackbone
from crnas_jax.models.layers import BN_RUNNING, BN_TRAIN, Normalization


class Backbone(nn.Module):
    """A stand-alone backbone; its parameters have the names that they have in a detector.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
    """

    arch: Arch
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the features c2..c5 (strides 4 to 32), in the dtype of the images.

        Args:
          images: normalised images (`arch.json` of an export says how), with heights and widths of
            a multiple of 32.
          train: whether batch normalisation uses the mini-batch's statistics, and moves the stored
            ones (`mutable=["batch_stats"]`).
        """
        norm = Normalization(BN_TRAIN if train else BN_RUNNING, jnp.ones(len(images)))
        backbone = StagedBackbone(self.arch, self.remat)
        nn.share_scope(self, backbone)
        return backbone(images, None, norm)
