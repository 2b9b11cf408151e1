"""Image classification on the same backbones, for pre-training."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from crnas_jax.arch import Architecture
from crnas_jax.models.layers import BNMode, LayerOptions, normalization, preprocess
from crnas_jax.models.necks.fpn import resize_nearest
from crnas_jax.runtime.options import check_below_one, check_not_negative


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    """Everything about a classifier except its backbone.

    Attributes:
      num_classes: number of classes.
      label_smoothing: share of the target spread over all classes.
      merges_levels: whether all levels of the backbone's outputs are read, not the last alone.
    """

    num_classes: int
    label_smoothing: float = 0.0
    merges_levels: bool = False

    def __post_init__(self):
        check_not_negative(self, "label_smoothing")
        check_below_one(self, "label_smoothing")

    def for_backbone(self, arch: Architecture) -> "ClassifierOptions":
        """Return the options with what follows from the backbone."""
        return dataclasses.replace(self, merges_levels=arch.has_pyramid)


class ImageClassifier(nn.Module):
    """c5, or the mean of a pyramid's levels, averaged over the image, and one dense layer.

    Methods take a batch of `image` uint8 [B, H, W, 3], `image_size` [B, 2], `label` int32 [B]
    (0-based) and `weight` [B], and the path `choice` (None for a stand-alone network).
    """

    backbone: nn.Module
    options: ClassifierOptions
    dtype: DTypeLike = jnp.float32
    layers: LayerOptions = LayerOptions("relu")

    def setup(self):
        self.head = nn.Dense(self.options.num_classes, dtype=self.dtype)

    def __call__(
        self,
        batch: dict[str, Array],
        choice,
        mode: BNMode,
        keys: Key[Array, " batch"] | None = None,
    ) -> dict[str, Float[Array, "batch classes"]]:
        """Return the logits of every class."""
        x = self.features(batch, choice, mode, keys)
        return {"logits": self.head(x.mean((1, 2))).astype(jnp.float32)}

    def init_layers(self, batch: dict[str, Array], choice, mode: BNMode) -> None:
        """Run each layer once, which gives it weights."""
        self(batch, choice, mode)

    def features(
        self,
        batch: dict[str, Array],
        choice,
        mode: BNMode,
        keys: Key[Array, " batch"] | None = None,
    ) -> Float[Array, "batch _ _ channels"]:
        """Return c5 or the merged levels: the output of all layers that have batch normalisation.

        A pyramid's levels are merged from the coarsest down, each resized to the next, and divided
        by their number (SpineNet, section 4.2).
        """
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        features = self.backbone(x, choice, normalization(batch, mode, self.layers, keys))
        merged = features[-1]
        if not self.options.merges_levels:
            return merged
        for level in features[-2::-1]:
            merged = level + resize_nearest(merged, level.shape[1:3])
        return merged / len(features)

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Return the mean cross-entropy over images of weight above 0.

        Args:
          batch: see the class.
          choice: see the class.
          mode: statistics of batch normalisation.
          keys: a key for each image, for stochastic depth and DropBlock.
        """
        logits = self(batch, choice, mode, keys)["logits"]
        target = optax.smooth_labels(
            jnp.eye(self.options.num_classes)[batch["label"]], self.options.label_smoothing
        )
        counted = batch["weight"] > 0
        cross_entropy = jnp.where(counted, optax.softmax_cross_entropy(logits, target), 0)
        return {"loss_classification": cross_entropy.sum() / jnp.maximum(counted.sum(), 1)}
