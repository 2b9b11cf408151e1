"""Faster, Mask and Cascade R-CNN with a feature pyramid, all shapes static.

arXiv 1506.01497, 1703.06870, 1712.00726, 1612.03144: backbone, neck, RPN, one box head or a cascade
of three, and with each a mask head where masks are wanted.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from crnas_jax.arch import Architecture
from crnas_jax.arch.cost.detectors import NECKS, require_levels, resolve_neck
from crnas_jax.errors import UserError
from crnas_jax.models.detector_module import DetectorModule
from crnas_jax.models.heads import box_head, mask_head, rpn
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.layers import BNMode
from crnas_jax.runtime.options import check_choice, check_counts


@dataclasses.dataclass(frozen=True)
class NeckOptions:
    """Settings of the neck.

    Attributes:
      kind: `fpn`, `nas_fpn`, or `none` on a backbone that puts out a pyramid; `auto` for the first
        or the last of them (`for_backbone`).
      stacks: number of pyramids on top of each other in NAS-FPN.
      lowest_level: finest of NAS-FPN's five levels: 3 for p3..p7, 2 for p2..p6, which FPN always
        has; 0 for the kind's default.
    """

    kind: str = "auto"
    stacks: int = 7
    lowest_level: int = 0

    def __post_init__(self):
        check_choice(self, "kind", NECKS)
        check_counts(self, "stacks")
        check_choice(self, "lowest_level", (0, 2, 3))
        fixed = {"fpn": 2, "none": 3}.get(self.kind, self.lowest_level or 3)
        object.__setattr__(self, "lowest_level", fixed)

    def for_backbone(self, arch: Architecture) -> "NeckOptions":
        """Return the settings with the kind that `auto` stands for on a backbone.

        Raises:
          UserError: the backbone does not fit the kind.
        """
        kind = resolve_neck(arch, self.kind)
        return self if kind == self.kind else dataclasses.replace(self, kind=kind)

    @property
    def coarsest_stride(self) -> int:
        """Stride of the coarsest level that the backbone or the neck computes by convolution."""
        return 32 if self.kind == "fpn" else 2 ** (self.lowest_level + 4)


@dataclasses.dataclass(frozen=True)
class DetectorOptions:
    """Everything about a detector except its backbone.

    Attributes:
      num_classes: number of object classes.
      pyramid_channels: channels of the neck and the RPN.
      rpn: settings of the proposal network.
      box: settings of the box heads; several stages make a Cascade R-CNN.
      mask: settings of the mask heads; None for boxes alone.
      neck: settings of the neck; `auto` becomes the kind for the detector's backbone.
    """

    num_classes: int
    pyramid_channels: int = 256
    rpn: RPNOptions = RPNOptions()
    box: BoxHeadOptions = BoxHeadOptions()
    mask: MaskHeadOptions | None = None
    neck: NeckOptions = NeckOptions()

    @property
    def score_threshold(self) -> float:
        """Detections score more."""
        return self.box.score_threshold

    @property
    def max_detections(self) -> int:
        """Most detections per image."""
        return self.box.max_detections

    @property
    def anchor_sizes(self) -> tuple[float, ...]:
        """Side of the smallest anchor of each level in pixels, finest first."""
        return self.rpn.anchor_sizes

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.mask is not None

    def for_backbone(self, arch: Architecture) -> "DetectorOptions":
        """Return the options with what follows from the backbone.

        Raises:
          UserError: the backbone does not fit.
        """
        neck, channels = self.neck.for_backbone(arch), self.pyramid_channels
        if neck.kind == "none":
            channels = arch.out_channels[0]
            require_levels(arch)
        return dataclasses.replace(self, neck=neck, pyramid_channels=channels)

    def scoring_above(self, threshold: float) -> "DetectorOptions":
        """Return the options with another `score_threshold`."""
        return dataclasses.replace(
            self, box=dataclasses.replace(self.box, score_threshold=threshold)
        )

    def __post_init__(self):
        check_counts(self, "pyramid_channels")
        if len(self.box.stages) > 1 and not self.box.class_agnostic:
            raise UserError(
                "detector",
                "class_agnostic",
                "False with a cascade",
                "stages refine boxes before their class is known: set it to True",
            )


class RCNN(DetectorModule):
    """Backbone, neck, RPN and heads."""

    def setup(self):
        options, width, head = self.options, self.options.pyramid_channels, self.options.box
        self.make_neck()
        self.rpn = rpn.RPNHead(width)
        self.box_heads = [
            box_head.BoxHead(
                options.num_classes, head.head_channels, head.class_agnostic, name=f"box_head{name}"
            )
            for name in head.stage_names
        ]
        self.mask_heads = [
            mask_head.MaskHead(options.num_classes, options.mask, name=f"mask_head{name}")
            for name in (head.stage_names if options.mask else ())
        ]

    def init_layers(self, batch: dict[str, Array], choice, mode: BNMode) -> None:
        """Run each layer once, which gives it weights: the heads on one RoI of zeros."""
        pyramid = self.features(batch, choice, mode)
        self.rpn(pyramid)
        channels, dtype = pyramid[0].shape[-1], pyramid[0].dtype
        for heads, options in (
            (self.box_heads, self.options.box),
            (self.mask_heads, self.options.mask),
        ):
            for head in heads:
                head(jnp.zeros((1, options.pool_size, options.pool_size, channels), dtype))

    def detections(
        self,
        pyramid: tuple[Float[Array, "batch _ _ channels"], ...],
        image_size: Int[Array, "batch 2"],
        canvas: tuple[int, int],
    ) -> dict[str, Array]:
        """Return the detections from a pyramid; no image depends on another."""
        options = self.options.box
        outputs, anchors = self._dense(pyramid, canvas)
        rois, valid = rpn.proposals(outputs, anchors, image_size, self.options.rpn, training=False)
        logits = 0.0
        last = len(options.stages) - 1
        for index, (stage, head) in enumerate(zip(options.stages, self.box_heads, strict=True)):
            stage_logits, deltas = head(self._pool(pyramid, rois, canvas, options.pool_size))
            logits += stage_logits / len(options.stages)
            if index < last:
                rois = box_head.refine(deltas, rois, image_size, stage)
        detections = box_head.postprocess((logits, deltas), rois, valid, image_size, options)
        if self.options.mask:
            pooled = self._pool(pyramid, detections["boxes"], canvas, self.options.mask.pool_size)
            labels = detections["labels"]
            masks = [mask_head.mask_probabilities(head(pooled), labels) for head in self.mask_heads]
            valid = detections["valid"][..., None, None]
            detections["masks"] = jnp.where(valid, sum(masks) / len(masks), 0)
        return detections

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Return the losses of RPN and heads, weighted as they are to be summed.

        Crowds are no ground truth; images of weight 0 do not count. A batch may bring its own
        proposals, as in Fast R-CNN (arXiv 1504.08083): `proposals` [B, n, 4] and `proposals_valid`
        [B, n]; RoIs are then sampled from those.

        Args:
          batch: see the class.
          choice: see the class.
          mode: statistics of batch normalisation.
          keys: a key for each image, from seed, step and image id: the draw of anchors and RoIs
            does not depend on the position in the batch or the device.
        """
        pyramid, canvas = self.features(batch, choice, mode, keys), batch["image"].shape[1:3]
        outputs, anchors = self._dense(pyramid, canvas)
        truth_valid = batch["valid"] & ~batch["crowd"]
        image_valid = batch["weight"] > 0
        rpn_keys, roi_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        objectness, rpn_box = rpn.rpn_losses(
            rpn_keys, outputs, anchors, batch["boxes"], truth_valid, image_valid, self.options.rpn
        )
        losses = {"loss_objectness": objectness, "loss_rpn_box": rpn_box}
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
            samples = box_head.sample_rois(roi_keys, rois, valid, *truth, stage, options)
            pooled = self._pool(pyramid, samples["rois"], canvas, options.pool_size)
            logits, deltas = self.box_heads[index](pooled)
            counted = samples["valid"] & image_valid[:, None]
            classification, box = box_head.box_losses((logits, deltas), samples, counted, options)
            losses[f"loss_classifier{name}"] = stage.loss_weight * classification
            losses[f"loss_box{name}"] = stage.loss_weight * box
            if self.options.mask:
                loss = self._mask_loss(pyramid, canvas, batch, samples, counted, index)
                losses[f"loss_mask{name}"] = stage.loss_weight * loss
            if index < last:
                # The next stage adds the ground truth itself.
                rois = box_head.refine(deltas, samples["rois"], batch["image_size"], stage)
                valid = samples["valid"] & ~samples["is_truth"]
        return losses

    def _mask_loss(self, pyramid, canvas, batch, samples, counted, stage):
        # Positives come first.
        max_positives = self.options.box.max_positives
        samples = {name: values[:, :max_positives] for name, values in samples.items()}
        pooled = self._pool(pyramid, samples["rois"], canvas, self.options.mask.pool_size)
        return mask_head.mask_loss(
            self.mask_heads[stage](pooled),
            samples,
            counted[:, :max_positives],
            batch["masks"],
            batch["boxes"],
            self.options.box.aligned,
        )

    def _pool(self, pyramid, rois, canvas, pool_size):
        level = self.options.neck.lowest_level
        return box_head.pool(pyramid, rois, canvas, self.options.box, pool_size, level)

    def _dense(self, pyramid, canvas):
        return self.rpn(pyramid), rpn.level_anchors(canvas, pyramid, self.options.rpn)
