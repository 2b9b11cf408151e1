"""Image classification on the same backbones, for pre-training."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from crnas_jax.models.layers import BNMode, Normalization, preprocess
from crnas_jax.runtime.options import check_below_one, check_not_negative


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    """Everything about a classifier except its backbone.

    Attributes:
      num_classes: number of classes.
      label_smoothing: share of the target spread over all classes.
    """

    num_classes: int
    label_smoothing: float = 0.0

    def __post_init__(self):
        check_not_negative(self, "label_smoothing")
        check_below_one(self, "label_smoothing")


class ImageClassifier(nn.Module):
    """c5 averaged over the image, and one dense layer.

    Methods take a batch of `image` uint8 [B, H, W, 3], `image_size` [B, 2], `label` int32 [B]
    (0-based) and `weight` [B], and the path `choice` (None for a stand-alone network).
    """

    backbone: nn.Module
    options: ClassifierOptions
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.head = nn.Dense(self.options.num_classes, dtype=self.dtype)

    def __call__(
        self, batch: dict[str, Array], choice, mode: BNMode
    ) -> dict[str, Float[Array, "batch classes"]]:
        """Return the logits of every class."""
        x = self.features(batch, choice, mode)
        return {"logits": self.head(x.mean((1, 2))).astype(jnp.float32)}

    def init_layers(self, batch: dict[str, Array], choice, mode: BNMode) -> None:
        """Run each layer once, which gives it weights."""
        self(batch, choice, mode)

    def features(
        self, batch: dict[str, Array], choice, mode: BNMode
    ) -> Float[Array, "batch _ _ channels"]:
        """Return c5: the output of all layers that have batch normalisation."""
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        return self.backbone(x, choice, Normalization(mode, batch["weight"]))[-1]

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Return the mean cross-entropy over images of weight above 0; `keys` are not used."""
        del keys
        logits = self(batch, choice, mode)["logits"]
        target = optax.smooth_labels(
            jnp.eye(self.options.num_classes)[batch["label"]], self.options.label_smoothing
        )
        counted = batch["weight"] > 0
        cross_entropy = jnp.where(counted, optax.softmax_cross_entropy(logits, target), 0)
        return {"loss_classification": cross_entropy.sum() / jnp.maximum(counted.sum(), 1)}
