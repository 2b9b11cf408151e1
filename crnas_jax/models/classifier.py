"""Image classification on the same backbones: for pre-training."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from crnas_jax.models.layers import BNMode, preprocess


@dataclasses.dataclass(frozen=True)
class ClassifierOptions:
    """Everything of a classifier but its backbone.

    Attributes:
      classes: number of them.
      label_smoothing: share of the target spread over all classes.
    """

    classes: int
    label_smoothing: float = 0.0


class ImageClassifier(nn.Module):
    """c5 averaged over the image, and one dense layer.

    Methods take a batch of `image` uint8 [B, H, W, 3], `image_size` [B, 2], `label` int32 [B]
    (0-based) and `weight` [B], and the path `choice` (None for a stand-alone network).
    """

    backbone: nn.Module
    options: ClassifierOptions
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.head = nn.Dense(self.options.classes, dtype=self.dtype)

    def __call__(
        self, batch: dict[str, Array], choice, mode: BNMode
    ) -> dict[str, Float[Array, "batch classes"]]:
        """The logits of every class."""
        x = self.features(batch, choice, mode)
        return {"logits": self.head(x.mean((1, 2))).astype(jnp.float32)}

    def features(
        self, batch: dict[str, Array], choice, mode: BNMode
    ) -> Float[Array, "batch _ _ channels"]:
        """c5: all that has batch normalisation."""
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        return self.backbone(x, choice, mode, batch["weight"])[-1]

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Cross-entropy; images of weight 0 count for nothing. Nothing is drawn by `keys`."""
        del keys
        logits = self(batch, choice, mode)["logits"]
        target = optax.smooth_labels(
            jnp.eye(self.options.classes)[batch["label"]], self.options.label_smoothing
        )
        counted = batch["weight"] > 0
        cross_entropy = jnp.where(counted, optax.softmax_cross_entropy(logits, target), 0)
        return {"loss_classification": cross_entropy.sum() / jnp.maximum(counted.sum(), 1)}
