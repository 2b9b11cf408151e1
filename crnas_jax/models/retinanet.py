"""RetinaNet (arXiv 1708.02002): a dense head on a pyramid p3..p7, all shapes static."""

import dataclasses

from jaxtyping import Array, Float, Int, Key

from crnas_jax.arch import Architecture
from crnas_jax.arch.cost.detectors import P6_SOURCES
from crnas_jax.errors import UserError
from crnas_jax.models.detector_module import DetectorModule
from crnas_jax.models.heads import retina_head, retina_outputs
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import BNMode, Normalization
from crnas_jax.models.rcnn import NeckOptions
from crnas_jax.runtime.options import check_choice, check_counts


@dataclasses.dataclass(frozen=True)
class RetinaNetOptions:
    """Everything about a RetinaNet except its backbone.

    Attributes:
      num_classes: number of object classes.
      pyramid_channels: channels of neck and towers; a backbone with a pyramid brings its own.
      head: settings of the head.
      p6_from: what FPN computes p6 from, one of `P6_SOURCES`.
      neck: settings of the neck; `auto` becomes the kind for the backbone. Levels begin with p3.
    """

    num_classes: int
    pyramid_channels: int = 256
    head: RetinaHeadOptions = RetinaHeadOptions()
    p6_from: str = "p5"
    neck: NeckOptions = NeckOptions()

    has_masks = False

    def __post_init__(self):
        check_counts(self, "pyramid_channels")
        check_choice(self, "p6_from", P6_SOURCES)

    @property
    def score_threshold(self) -> float:
        """Detections score more."""
        return self.head.score_threshold

    @property
    def max_detections(self) -> int:
        """Most detections per image."""
        return self.head.max_detections

    @property
    def anchor_sizes(self) -> tuple[float, ...]:
        """Side of the smallest anchor of each level in pixels, finest first."""
        return self.head.anchor_sizes

    def for_backbone(self, arch: Architecture) -> "RetinaNetOptions":
        """Return the options with what follows from the backbone.

        Raises:
          UserError: the backbone does not fit.
        """
        neck, channels = self.neck.for_backbone(arch), self.pyramid_channels
        if neck.kind == "none":
            channels = arch.out_channels[0]
        elif neck.kind == "nas_fpn" and neck.lowest_level != 3:
            problem = f"{neck.lowest_level}, and RetinaNet reads p3..p7"
            raise UserError("NeckOptions", "lowest_level", problem, "set it to 3")
        num_levels = len(arch.levels) if neck.kind == "none" else 5
        if len(self.head.anchor_sizes) < num_levels:
            problem = f"{len(self.head.anchor_sizes)} for {num_levels} levels"
            raise UserError("RetinaHeadOptions", "anchor_sizes", problem, "give one for each")
        if self.head.form == "torchvision_v2" and channels % retina_head.NUM_GROUPS:
            problem = f"{channels} channels do not divide into {retina_head.NUM_GROUPS} groups"
            raise UserError("RetinaHeadOptions", "form", problem, "change pyramid_channels")
        head = self.head.for_backbone(arch)
        return dataclasses.replace(self, neck=neck, pyramid_channels=channels, head=head)

    def scoring_above(self, threshold: float) -> "RetinaNetOptions":
        """Return the options with another `score_threshold`."""
        return dataclasses.replace(
            self, head=dataclasses.replace(self.head, score_threshold=threshold)
        )


class RetinaNet(DetectorModule):
    """Backbone, neck and head."""

    def setup(self):
        options = self.options
        self.make_neck(options.p6_from)
        width = options.pyramid_channels
        self.head = retina_head.RetinaHead(options.head, width, options.num_classes)

    def init_layers(self, batch: dict[str, Array], choice, mode: BNMode) -> None:
        """Run each layer once, which gives it weights."""
        self._dense(self.features(batch, choice, mode), batch["image"].shape[1:3])

    def detections(
        self,
        features: tuple[Float[Array, "batch _ _ channels"], ...],
        image_size: Int[Array, "batch 2"],
        canvas: tuple[int, int],
    ) -> dict[str, Array]:
        """Return the detections from what `features` returns; no image depends on another."""
        outputs, anchors = self._dense(features, canvas)
        return retina_outputs.postprocess(outputs, anchors, image_size, self.options.head)

    def losses(
        self, batch: dict[str, Array], choice, mode: BNMode, keys: Key[Array, " batch"]
    ) -> dict[str, Float[Array, ""]]:
        """Return the losses as they are to be summed.

        Crowds are no ground truth; images of weight 0 do not count.

        Args:
          batch: see `DetectorModule`.
          choice: see there.
          mode: statistics of batch normalisation.
          keys: a key for each image, for stochastic depth and DropBlock.
        """
        features = self.features(batch, choice, mode, keys)
        outputs, anchors = self._dense(features, batch["image"].shape[1:3])
        classification, box = retina_outputs.retina_losses(
            outputs,
            anchors,
            batch["boxes"],
            batch["labels"],
            batch["valid"] & ~batch["crowd"],
            batch["weight"] > 0,
            self.options.head,
        )
        return {"loss_classifier": classification, "loss_box": box}

    def neck(
        self, features: tuple[Float[Array, "batch _ _ _"], ...], norm: Normalization
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the pyramid, or the towers' output where they have batch normalisation."""
        pyramid = super().neck(features, norm)
        return self.head.towers(pyramid, norm) if self._towers_have_bn else pyramid

    @property
    def _towers_have_bn(self):
        return self.options.head.form == "spinenet"

    def _dense(self, features, canvas):
        if not self._towers_have_bn:
            features = self.head.towers(features, None)
        grids = [level.shape[1:3] for level in features[: len(features) // 2]]
        anchors = retina_outputs.level_anchors(canvas, grids, self.options.head)
        return self.head.predictors(features), anchors
