"""Faster R-CNN with a feature pyramid (arXiv 1506.01497, 1612.03144), all shapes static."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from crnas_jax.models import roi_heads, rpn
from crnas_jax.models.fpn import FPN
from crnas_jax.models.layers import BNMode, preprocess
from crnas_jax.models.roi_heads import BoxHeadOptions
from crnas_jax.models.rpn import RPNOptions


@dataclasses.dataclass(frozen=True)
class DetectorOptions:
    """Everything of a detector but its backbone.

    Attributes:
      classes: number of object classes.
      pyramid_channels: of the FPN and the RPN.
      rpn: see `RPNOptions`.
      box: see `BoxHeadOptions`.
    """

    classes: int
    pyramid_channels: int = 256
    rpn: RPNOptions = RPNOptions()
    box: BoxHeadOptions = BoxHeadOptions()


class FasterRCNN(nn.Module):
    """Backbone, FPN, RPN and box head. The backbone is a `ResNet` or a `Supernet`.

    Methods take a batch as design contract has it (`image`, `image_size`, `boxes`, `labels`,
    `valid`, `crowd`, `weight`) and the path `choice` (None for a stand-alone network).
    Activations are computed in `dtype`; what leaves the heads is float32.
    """

    backbone: nn.Module
    options: DetectorOptions
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.fpn = FPN(self.options.pyramid_channels)
        self.rpn = rpn.RPNHead(self.options.pyramid_channels)
        self.box_head = roi_heads.BoxHead(self.options.classes, self.options.box.head_channels)

    def __call__(self, batch: dict[str, Array], choice, mode: BNMode) -> dict[str, Array]:
        """Detections; see `roi_heads.postprocess`."""
        pyramid, outputs, anchors, canvas = self._dense(batch, choice, mode)
        size = batch["image_size"]
        rois, valid = rpn.proposals(outputs, anchors, size, self.options.rpn, training=False)
        head = self.box_head(roi_heads.pool(pyramid, rois, canvas, self.options.box))
        return roi_heads.postprocess(head, rois, valid, size, self.options.box)

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """The four losses. Crowds are no ground truth; images of weight 0 count for nothing.

        A batch may bring its own proposals, as in Fast R-CNN (arXiv 1504.08083): `proposals`
        [B, n, 4] and `proposals_valid` [B, n]; RoIs are then sampled from those.

        Args:
          keys: one for each image, of seed, step and image id: the draw of anchors and RoIs does
            not depend on the place in the batch or the device.
        """
        pyramid, outputs, anchors, canvas = self._dense(batch, choice, mode)
        truth_valid = batch["valid"] & ~batch["crowd"]
        image_valid = batch["weight"] > 0
        rpn_keys, roi_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        objectness, rpn_box = rpn.rpn_losses(
            rpn_keys, outputs, anchors, batch["boxes"], truth_valid, image_valid, self.options.rpn
        )
        if "proposals" in batch:
            proposals, valid = batch["proposals"], batch["proposals_valid"]
        else:
            proposals, valid = rpn.proposals(
                outputs, anchors, batch["image_size"], self.options.rpn, training=True
            )
        rois, labels, targets, sampled = roi_heads.sample_rois(
            roi_keys,
            proposals,
            valid,
            batch["boxes"],
            batch["labels"],
            truth_valid,
            self.options.box,
        )
        head = self.box_head(roi_heads.pool(pyramid, rois, canvas, self.options.box))
        classification, box = roi_heads.box_losses(
            head, labels, targets, sampled & image_valid[:, None]
        )
        return {
            "loss_objectness": objectness,
            "loss_rpn_box": rpn_box,
            "loss_classifier": classification,
            "loss_box": box,
        }

    def _dense(self, batch, choice, mode):
        canvas = batch["image"].shape[1:3]
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        pyramid = self.fpn(self.backbone(x, choice, mode, batch["weight"]))
        outputs = self.rpn(pyramid)
        return pyramid, outputs, rpn.level_anchors(canvas, pyramid, self.options.rpn), canvas
