"""From a ConfigDict to the frozen options that inner code takes."""

import dataclasses
import hashlib
import json

from crnas_jax import cost, zoo
from crnas_jax.arch import Arch
from crnas_jax.data import build as data_build
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.detectors import BoxHeadOptions, DetectorOptions, RPNOptions
from crnas_jax.models.supernet import SupernetSpec
from crnas_jax.search.scoring import ScoreOptions
from crnas_jax.search_space import OperationSpace, StageSpace
from crnas_jax.training.loop import TrainOptions
from crnas_jax.training.mesh import make_mesh
from crnas_jax.training.optimizer import OptimizerOptions, make_schedule

# Fields that change how a run is executed, not what comes out of it; wherever they stand. What the
# data folder holds is in the sources' digests.
_EXECUTION = ("devices", "folder", "checkpoint_seconds", "log_every", "chunk")
_RECIPES = ("stage_train", "operation_train", "detector_train")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run needs, made from one config (see `configs/base.py` for the fields)."""

    config: object

    @property
    def hash(self) -> str:
        """Of all fields that can change a result."""
        text = json.dumps(_results_only(self.config.to_dict()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def size(self) -> ImageSize:
        """Resizing rule."""
        return ImageSize(self.config.data.short, self.config.data.long)

    @property
    def devices(self) -> int | None:
        """How many to use; None for all."""
        return self.config.devices or None

    @property
    def baseline(self) -> Arch:
        """The network to be reallocated, at the config's widths."""
        return dataclasses.replace(zoo.get(self.config.baseline), widths=tuple(self.config.widths))

    @property
    def budget(self) -> int:
        """Blocks in all."""
        return self.config.budget or sum(self.baseline.depths)

    @property
    def stage_space(self) -> StageSpace:
        """Allocations that may be chosen.

        Raises:
          UserError: none costs the budget.
        """
        space = StageSpace(tuple(map(tuple, self.config.supernet.grids)))
        space.require(self.budget)
        return space

    def operation_space(self, depths) -> OperationSpace:
        """Operation codes of a network with these depths."""
        return OperationSpace(tuple(depths), tuple(self.config.supernet.dilations))

    def sources(self) -> dict:
        """The splits of the data by name.

        Raises:
          UserError: the files are faulty, or the splits do not belong together.
        """
        sources = {split: data_build.source(self.config.data, split) for split in data_build.SPLITS}
        data_build.require_consistent(sources)
        return sources

    def detector_options(self, classes: int) -> DetectorOptions:
        """Neck and heads."""
        fields = self.config.detector
        rpn = RPNOptions(
            anchor_sizes=tuple(fields.anchor_sizes),
            samples=fields.rpn_samples,
            pre_nms=tuple(fields.pre_nms),
            post_nms=tuple(fields.post_nms),
        )
        box = BoxHeadOptions(
            head_channels=fields.head_channels,
            aligned=fields.roi_aligned,
            canonical_size=fields.canonical_size,
            samples=fields.roi_samples,
            nms_candidates=fields.nms_candidates,
        )
        return DetectorOptions(classes, fields.pyramid_channels, rpn, box)

    def stage_supernet(self, classes: int) -> Detector:
        """All allocations of the grid, one dilation."""
        return self._supernet(self.config.supernet.grids, (1,), classes)

    def operation_supernet(self, depths, classes: int) -> Detector:
        """One allocation, all dilations."""
        return self._supernet(
            [(depth,) for depth in depths], self.config.supernet.dilations, classes
        )

    def _supernet(self, grids, dilations, classes):
        fields = self.config.supernet
        spec = SupernetSpec(
            self.baseline.family,
            tuple(fields.widths),
            tuple(tuple(grid) for grid in grids),
            tuple(dilations),
            fields.stage_sharing,
            fields.kernel_sharing,
            fields.remat,
        )
        return Detector(spec, self.detector_options(classes))

    def train_options(self, recipe: str) -> TrainOptions:
        """Of `stage_train`, `operation_train` or `detector_train`."""
        fields = self.config[recipe]
        optimizer = OptimizerOptions(
            fields.rate_per_image,
            fields.momentum,
            fields.weight_decay,
            fields.schedule,
            tuple(fields.drops),
            fields.warmup_steps,
        )
        return TrainOptions(
            epochs=fields.epochs,
            batch_size=fields.batch_size,
            size=self.size,
            optimizer=optimizer,
            max_objects=self.config.data.max_objects,
            flip=self.config.data.flip,
            seed=self.config.seed,
            checkpoint_seconds=fields.checkpoint_seconds,
            log_every=fields.log_every,
            devices=self.devices,
        )

    def score_options(self, bn: str) -> ScoreOptions:
        """How subnets are scored."""
        fields = self.config.search
        return ScoreOptions(
            batch_size=fields.batch_size,
            size=self.size,
            batches=fields.batches or None,
            bn=bn,
            calibration_images=fields.calibration_images,
            chunk=fields.chunk,
            seed=self.config.seed,
            devices=self.devices,
        )

    def cost(self, arch: Arch, classes: int) -> cost.Cost:
        """Of the whole detector with this backbone on the landscape canvas, at test time."""
        fields = self.config.detector
        parts = cost.faster_rcnn(
            arch,
            self.size.canvas(portrait=False),
            classes,
            rois=fields.post_nms[1],
            pyramid_channels=fields.pyramid_channels,
            head_channels=fields.head_channels,
        )
        return sum(parts.values(), cost.Cost())

    def validate(self) -> None:
        """Raises UserError for a config that cannot run."""
        if self.config.search.bn not in ("recalibrate", "batch", "running"):
            raise UserError(
                "config",
                "search.bn",
                f"{self.config.search.bn!r} is unknown",
                "use recalibrate, batch or running",
            )
        for field in ("keep", "chunk", "batch_size"):
            if self.config.search[field] < 1:
                raise UserError("config", f"search.{field}", "less than 1", "use at least 1")
        for recipe in _RECIPES:
            options = self.train_options(recipe)
            make_mesh(options.batch_size, self.devices)
            make_schedule(options.optimizer, options.batch_size, steps=1)
        make_mesh(self.config.search.batch_size, self.devices)
        self.stage_supernet(classes=1)
        _ = self.stage_space, self.operation_space(self.baseline.depths)


def _results_only(fields: dict) -> dict:
    return {
        name: _results_only(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _EXECUTION
    }
