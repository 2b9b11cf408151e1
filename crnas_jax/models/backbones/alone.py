"""A backbone that takes images and returns features, for detectors that are not of this package."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from crnas_jax.arch import Architecture
from crnas_jax.models.backbones.build import MODULES
from crnas_jax.models.layers import BN_RUNNING, BN_TRAIN, LayerOptions, Normalization


class Backbone(nn.Module):
    """A stand-alone backbone; its parameters have the names that they have in a detector.

    Attributes:
      arch: the architecture.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
      layers: activation and batch normalisation; without an activation the family's own.
    """

    arch: Architecture
    remat: bool = False
    layers: LayerOptions = LayerOptions()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the features in the dtype of the images, finest first.

        They are c2..c5 (strides 4 to 32), of a scale-permuted backbone p3..p7 (8 to 128).

        Args:
          images: normalised images (`arch.json` of an export says how), with heights and widths of
            a multiple of 32, or of what that says.
          train: whether batch normalisation uses the mini-batch's statistics, and moves the stored
            ones (`mutable=["batch_stats"]`).
        """
        mode = dataclasses.replace(BN_TRAIN, momentum=self.layers.bn_momentum)
        norm = Normalization(mode if train else BN_RUNNING, jnp.ones(len(images)), self.layers)
        backbone = MODULES[type(self.arch)](self.arch, self.remat)
        nn.share_scope(self, backbone)
        return backbone(images, None, norm)
