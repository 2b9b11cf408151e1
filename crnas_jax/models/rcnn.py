"""Faster, Mask and Cascade R-CNN with a feature pyramid, all shapes static.

arXiv 1506.01497, 1703.06870, 1712.00726, 1612.03144: backbone, neck, RPN, one box head or a cascade
of three, and to each a mask head where masks are wanted.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from crnas_jax.arch.cost.detectors import NECKS
from crnas_jax.errors import UserError
from crnas_jax.models.heads import box_head as roi_heads
from crnas_jax.models.heads import mask_head, rpn
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.layers import BNMode, preprocess
from crnas_jax.models.necks.fpn import FPN
from crnas_jax.models.necks.nas_fpn import NASFPN


@dataclasses.dataclass(frozen=True)
class NeckOptions:
    """Settings of the neck.

    Attributes:
      kind: `fpn` or `nas_fpn`.
      stacks: pyramids on top of each other in NAS-FPN.
      lowest_level: of NAS-FPN's five levels: 3 for p3..p7, 2 for p2..p6, which FPN always has; 0
        for the kind's own.
    """

    kind: str = "fpn"
    stacks: int = 7
    lowest_level: int = 0

    def __post_init__(self):
        if self.kind not in NECKS:
            raise UserError("detector", "neck", f"{self.kind!r} is unknown", f"use one of {NECKS}")
        allowed = (3, 2) if self.kind == "nas_fpn" else (2,)
        object.__setattr__(self, "lowest_level", self.lowest_level or allowed[0])
        if self.lowest_level not in allowed:
            raise UserError(
                "detector", "lowest_level", f"{self.lowest_level}", f"{self.kind} has {allowed}"
            )


@dataclasses.dataclass(frozen=True)
class DetectorOptions:
    """Everything of a detector but its backbone.

    Attributes:
      classes: number of object classes.
      pyramid_channels: of the neck and the RPN.
      rpn: see `RPNOptions`.
      box: see `BoxHeadOptions`; several stages make a Cascade R-CNN.
      mask: see `MaskHeadOptions`; None for boxes alone.
      neck: see `NeckOptions`.
    """

    classes: int
    pyramid_channels: int = 256
    rpn: RPNOptions = RPNOptions()
    box: BoxHeadOptions = BoxHeadOptions()
    mask: MaskHeadOptions | None = None
    neck: NeckOptions = NeckOptions()

    def __post_init__(self):
        if len(self.box.stages) > 1 and not self.box.class_agnostic:
            raise UserError(
                "detector",
                "class_agnostic",
                "False with a cascade",
                "stages refine boxes whose class is not known yet: set it to True",
            )


class RCNN(nn.Module):
    """Backbone, neck, RPN and heads. The backbone is a `Backbone` or a `Supernet`.

    Methods take a batch as design contract has it (`image`, `image_size`, `boxes`, `labels`,
    `valid`, `crowd`, `weight`, with a mask head `masks`) and the path `choice` (None for a
    stand-alone network). Activations are computed in `dtype`; what leaves the heads is float32.
    """

    backbone: nn.Module
    options: DetectorOptions
    dtype: DTypeLike = jnp.float32

    def setup(self):
        options, width, head = self.options, self.options.pyramid_channels, self.options.box
        if options.neck.kind == "nas_fpn":
            self.nas_fpn = NASFPN(width, options.neck.stacks, options.neck.lowest_level)
        else:
            self.fpn = FPN(width)
        self.rpn = rpn.RPNHead(width)
        self.box_heads = [
            roi_heads.BoxHead(
                options.classes, head.head_channels, head.class_agnostic, name=f"box_head{name}"
            )
            for name in head.stage_names
        ]
        self.mask_heads = [
            mask_head.MaskHead(options.classes, options.mask, name=f"mask_head{name}")
            for name in (head.stage_names if options.mask else ())
        ]

    def __call__(self, batch: dict[str, Array], choice, mode: BNMode) -> dict[str, Array]:
        """Detections (see `roi_heads.postprocess`), with a mask head `masks` [batch, detections,
        M, M] too: probabilities over the detection's box.
        """
        pyramid = self.features(batch, choice, mode)
        return self.detections(pyramid, batch["image_size"], batch["image"].shape[1:3])

    def detections(
        self,
        pyramid: tuple[Float[Array, "batch _ _ channels"], ...],
        size: Int[Array, "batch 2"],
        canvas: tuple[int, int],
    ) -> dict[str, Array]:
        """`__call__` from the pyramid on: every image by itself."""
        options = self.options.box
        outputs, anchors = self._dense(pyramid, canvas)
        rois, valid = rpn.proposals(outputs, anchors, size, self.options.rpn, training=False)
        logits = 0.0
        last = len(options.stages) - 1
        for index, (stage, head) in enumerate(zip(options.stages, self.box_heads, strict=True)):
            own_logits, deltas = head(self._pool(pyramid, rois, canvas, options.bins))
            logits += own_logits / len(options.stages)
            if index < last:
                rois = roi_heads.refine(deltas, rois, size, stage)
        found = roi_heads.postprocess((logits, deltas), rois, valid, size, options)
        if self.options.mask:
            pooled = self._pool(pyramid, found["boxes"], canvas, self.options.mask.bins)
            parts = [
                mask_head.probabilities(head(pooled), found["labels"]) for head in self.mask_heads
            ]
            found["masks"] = jnp.where(found["valid"][..., None, None], sum(parts) / len(parts), 0)
        return found

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Losses of RPN and heads, weighted as they are to be summed. Crowds are no ground truth;
        images of weight 0 count for nothing.

        A batch may bring its own proposals, as in Fast R-CNN (arXiv 1504.08083): `proposals`
        [B, n, 4] and `proposals_valid` [B, n]; RoIs are then sampled from those.

        Args:
          keys: one for each image, of seed, step and image id: the draw of anchors and RoIs does
            not depend on the place in the batch or the device.
        """
        pyramid, canvas = self.features(batch, choice, mode), batch["image"].shape[1:3]
        outputs, anchors = self._dense(pyramid, canvas)
        truth_valid = batch["valid"] & ~batch["crowd"]
        image_valid = batch["weight"] > 0
        rpn_keys, roi_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        objectness, rpn_box = rpn.rpn_losses(
            rpn_keys, outputs, anchors, batch["boxes"], truth_valid, image_valid, self.options.rpn
        )
        found = {"loss_objectness": objectness, "loss_rpn_box": rpn_box}
        if "proposals" in batch:
            rois, valid = batch["proposals"], batch["proposals_valid"]
        else:
            rois, valid = rpn.proposals(
                outputs, anchors, batch["image_size"], self.options.rpn, training=True
            )
        options = self.options.box
        last = len(options.stages) - 1
        stages = zip(options.stages, options.stage_names, strict=True)
        for index, (stage, name) in enumerate(stages):
            if index:
                roi_keys = jax.vmap(lambda key, i=index: jax.random.fold_in(key, i))(roi_keys)
            truth = (batch["boxes"], batch["labels"], truth_valid)
            samples = roi_heads.sample_rois(roi_keys, rois, valid, *truth, stage, options)
            pooled = self._pool(pyramid, samples["rois"], canvas, options.bins)
            logits, deltas = self.box_heads[index](pooled)
            counted = samples["valid"] & image_valid[:, None]
            classification, box = roi_heads.box_losses((logits, deltas), samples, counted, options)
            found[f"loss_classifier{name}"] = stage.loss_weight * classification
            found[f"loss_box{name}"] = stage.loss_weight * box
            if self.options.mask:
                loss = self._mask_loss(pyramid, canvas, batch, samples, counted, index)
                found[f"loss_mask{name}"] = stage.loss_weight * loss
            if index < last:
                # The next stage adds the ground truth itself.
                rois = roi_heads.refine(deltas, samples["rois"], batch["image_size"], stage)
                valid = samples["valid"] & ~samples["is_truth"]
        return found

    def _mask_loss(self, pyramid, canvas, batch, samples, counted, stage):
        # Positives come first.
        most = self.options.box.most_positives
        samples = {name: values[:, :most] for name, values in samples.items()}
        pooled = self._pool(pyramid, samples["rois"], canvas, self.options.mask.bins)
        return mask_head.mask_loss(
            self.mask_heads[stage](pooled),
            samples,
            counted[:, :most],
            batch["masks"],
            batch["boxes"],
            self.options.box.aligned,
        )

    def _pool(self, pyramid, rois, canvas, bins):
        level = self.options.neck.lowest_level
        return roi_heads.pool(pyramid, rois, canvas, self.options.box, bins, level)

    def features(
        self, batch: dict[str, Array], choice, mode: BNMode
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """The pyramid: all that has batch normalisation."""
        x = preprocess(batch["image"], batch["image_size"], self.dtype)
        features = self.backbone(x, choice, mode, batch["weight"])
        return self.neck(features, mode, batch["weight"])

    def neck(
        self,
        features: tuple[Float[Array, "batch _ _ _"], ...],
        mode: BNMode,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """The pyramid from c2..c5."""
        if self.options.neck.kind == "nas_fpn":
            return self.nas_fpn(features, mode, weight)
        return self.fpn(features)

    def _dense(self, pyramid, canvas):
        return self.rpn(pyramid), rpn.level_anchors(canvas, pyramid, self.options.rpn)
