"""What the modules of all detectors share: backbone, neck, and what is normalised in batches."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from crnas_jax.models.layers import (
    BNMode,
    LayerOptions,
    Normalization,
    normalization,
    preprocess,
)
from crnas_jax.models.necks.fpn import FPN
from crnas_jax.models.necks.nas_fpn import NASFPN


class DetectorModule(nn.Module):
    """Backbone and neck of a detector; a kind of detector adds its heads.

    Methods take a batch as the design's contract has it (`image`, `image_size`, `boxes`, `labels`,
    `valid`, `crowd`, `weight`, with a mask head `masks`) and the path `choice` (None for a
    stand-alone network). Activations are computed in `dtype`; what leaves the heads is float32.

    Attributes:
      backbone: module of the backbone.
      options: options of the detector; `neck`, `pyramid_channels` and the heads'.
      dtype: dtype of the activations.
      layers: what the layers have in common.
    """

    backbone: nn.Module
    options: Any
    dtype: DTypeLike = jnp.float32
    layers: LayerOptions = LayerOptions("relu")

    def make_neck(self, p6_from: str = "") -> None:
        """Make the neck's layers, in `setup`; `p6_from` as in `FPN`."""
        neck, width = self.options.neck, self.options.pyramid_channels
        if neck.kind == "nas_fpn":
            self.nas_fpn = NASFPN(width, neck.stacks, neck.lowest_level)
        elif neck.kind == "fpn":
            self.fpn = FPN(width, p6_from)

    def __call__(self, batch: dict[str, Array], choice, mode: BNMode) -> dict[str, Array]:
        """Return the detections (see `box_head.postprocess`).

        With a mask head also `masks` [batch, detections, M, M]: probabilities over the detection's
        box.
        """
        features = self.features(batch, choice, mode)
        return self.detections(features, batch["image_size"], batch["image"].shape[1:3])

    def features(
        self,
        batch: dict[str, Array],
        choice,
        mode: BNMode,
        keys: Key[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return what `neck` returns: the output of all layers that have batch normalisation."""
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        return self.pyramid(x, choice, normalization(batch, mode, self.layers, keys))

    def pyramid(
        self, x: Float[Array, "batch height width 3"], choice, norm: Normalization
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return what `neck` returns for normalised images."""
        return self.neck(self.backbone(x, choice, norm), norm)

    def neck(
        self, features: tuple[Float[Array, "batch _ _ _"], ...], norm: Normalization
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the pyramid from the backbone's features, which may be one already."""
        if self.options.neck.kind == "none":
            return features
        if self.options.neck.kind == "nas_fpn":
            return self.nas_fpn(features, norm)
        return self.fpn(features)
