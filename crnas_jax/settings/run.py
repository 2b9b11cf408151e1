"""From a ConfigDict to the frozen options that inner code takes."""

import dataclasses
import json
from collections.abc import Callable

from crnas_jax.arch import zoo
from crnas_jax.arch.cost import detectors as cost
from crnas_jax.arch.staged import Arch
from crnas_jax.data import build as data_build
from crnas_jax.data.transforms import ClassificationRows, DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.staged import Frozen
from crnas_jax.models.build import PRECISIONS, Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.box_head import CASCADE_STAGES, BoxHeadOptions, BoxStage
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions, NeckOptions
from crnas_jax.models.supernet.banks import KERNEL_SHARING, STAGE_SHARING, SupernetSpec
from crnas_jax.parallel.mesh import make_mesh
from crnas_jax.runtime.workdir import digest
from crnas_jax.search.strategies.build import OPERATION_STRATEGIES, STAGE_STRATEGIES
from crnas_jax.search.supernet.scorer import BN_RULES, ScoreOptions
from crnas_jax.settings.validation import check_lengths, check_values, naming
from crnas_jax.spaces.stages import Constrained, OperationSpace, StageSpace, limited
from crnas_jax.training.loop import TrainOptions
from crnas_jax.training.optimizer import OptimizerOptions, make_schedule

# The trained networks of a run.
NETWORKS = ("stage_supernet", "operation_supernet", "baseline", "searched")
# Those that are compared on the test split.
COMPARED = ("baseline", "searched")
# Which recipe trains each.
RECIPE_OF = dict(
    zip(NETWORKS, ("stage_train", "operation_train", *["detector_train"] * 2), strict=True)
)
# RetinaNet's cost is known, the network itself is not there yet.
DETECTORS = tuple(name for name in cost.DETECTORS if name != "retinanet")
# Fields that change how a run is executed, not what comes out of it; wherever they stand. What the
# data folder holds is in the sources' digests.
_EXECUTION = ("devices", "folder", "remat", "checkpoint_seconds", "log_every", "chunk")

# Arrays of each stage's size that greedy search may keep on the devices.
_MOST_SLOTS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything a run needs, made from one config (see `configs/base.py` for the fields)."""

    config: object

    @property
    def hash(self) -> str:
        """Of all fields that can change a result; of a file with an architecture, what it holds."""
        fields = _results_only(self.config.to_dict())
        if self.config.baseline.endswith(".json"):
            fields["baseline"] = zoo.find(self.config.baseline).to_json()
        return digest(json.dumps(fields, sort_keys=True))

    @property
    def size(self) -> ImageSize:
        """Resizing rule; canvases are whole cells of the neck's coarsest level."""
        neck = self.config.detector.neck
        multiple = 2 ** (self.config.detector.lowest_level + 4) if neck == "nas_fpn" else 32
        return ImageSize(self.config.data.short, self.config.data.long, multiple)

    @property
    def has_masks(self) -> bool:
        """Whether the detector has a mask head."""
        return "mask" in self.config.detector.kind

    @property
    def devices(self) -> int | None:
        """How many to use; None for all."""
        return self.config.devices or None

    @property
    def baseline(self) -> Arch:
        """The network to be reallocated, at the config's widths where it names some.

        Raises:
          UserError: the zoo does not know it, or its file holds no architecture.
        """
        arch, widths = zoo.find(self.config.baseline), tuple(self.config.widths)
        return dataclasses.replace(arch, widths=widths or arch.widths)

    def arch(self, depths: tuple[int, ...], dilations: tuple[int, ...] = ()) -> Arch:
        """The network of a found code, at the widths that are trained in the end."""
        baseline = self.baseline
        return Arch(baseline.family, depths, dilations, baseline.widths)

    @property
    def budget(self) -> float:
        """Cost in blocks."""
        return self.config.budget or self.stage_cost(self.baseline)

    @staticmethod
    def stage_cost(arch: Arch) -> float:
        """Of an architecture, in blocks."""
        return StageSpace.of(arch.family).cost(arch.depths)

    @property
    def budgets(self) -> tuple[float, ...]:
        """Of the stage search, the one of the run first."""
        return tuple(dict.fromkeys([self.budget, *map(float, self.config.search.budgets)]))

    @property
    def stage_space(self) -> StageSpace:
        """Allocations that may be chosen.

        Raises:
          UserError: none costs the budget.
        """
        grids = tuple(map(tuple, self.config.supernet.grids))
        space = StageSpace.of(self.baseline.family, grids)
        for budget in self.budgets:
            space.require(budget)
        return space

    def limits(self, classes: int) -> list[tuple[float, str, Callable]]:
        """The config's limits that need no measurement: the most, its unit, and what it is of."""
        fields = self.config.search
        limits = [
            (fields.max_flops, "multiply-adds", lambda arch: self.cost(arch, classes).flops),
            (fields.max_params, "parameters", lambda arch: self.cost(arch, classes).params),
        ]
        return [limit for limit in limits if limit[0]]

    def allowed_stages(self, classes: int) -> StageSpace | Constrained:
        """`stage_space` within `limits`.

        Raises:
          UserError: a budget has no allocation within them.
        """
        space = limited(self.stage_space, self.limits(classes), self.arch)
        for budget in self.budgets:
            space.require(budget)
        return space

    def operation_space(self, depths) -> OperationSpace:
        """Operation codes of a network with these depths."""
        stages = Arch(self.baseline.family, tuple(depths)).stage_depths
        return OperationSpace(stages, tuple(self.config.supernet.dilations))

    def sources(self) -> dict:
        """The splits of the detection data by name; without `val` where it is not named, none at
        all where `data.name` is "none".

        Raises:
          UserError: the files are faulty, or the splits do not belong together.
        """
        data = self.config.data
        if data.name == "none":
            return {}
        sources = {
            split: data_build.source(data, split, self.has_masks)
            for split in data_build.SPLITS
            if split != "val" or data.val
        }
        data_build.require_consistent(sources)
        return sources

    def classification_sources(self) -> dict:
        """The splits of the classification data by name; none where nothing is pre-trained."""
        if not self.config.pretrain.networks:
            return {}
        data = self.config.pretrain.data
        sources = {
            split: data_build.classification_source(data, split) for split in ("train", "val")
        }
        if sources["train"].class_names != sources["val"].class_names:
            raise UserError(
                data.folder, data.val, "other classes than train", "give both the same folders"
            )
        return sources

    def require_detection(self, network: str) -> None:
        """Raises UserError unless the config has the data to train one of `NETWORKS`."""
        if self.config.data.name == "none":
            problem = '"none", and detection needs images with boxes'
            raise UserError("config", "data.name", problem, "name a data set")
        if network in ("searched", "operation_supernet"):
            self.require_search()

    def require_search(self) -> None:
        """Raises UserError unless the config has the data to search on."""
        self.require_detection("stage_supernet")
        if not self.config.data.val:
            problem = "empty, and a search scores on that split"
            raise UserError("config", "data.val", problem, "name one, or train a network alone")

    def require_pretraining(self, network: str) -> None:
        """Raises UserError unless the config has the network pre-trained."""
        if network not in self.config.pretrain.networks:
            raise UserError(
                "config",
                "pretrain.networks",
                f"{network} is not in it",
                f"set --config.pretrain.networks=\"('{network}',)\" for this and all later steps",
            )

    def stage_supernet(self) -> SupernetSpec:
        """All allocations of the grid, one dilation."""
        return self._supernet(self.stage_space.grids, (1,))

    def operation_supernet(self, depths) -> SupernetSpec:
        """One allocation, all dilations."""
        return self._supernet([(depth,) for depth in depths], self.config.supernet.dilations)

    def _supernet(self, grids, dilations):
        fields, baseline = self.config.supernet, self.baseline
        # The paper halves ResNet and ResNeXt; MobileNetV2 keeps its widths.
        share = 1 if baseline.traits.block == "inverted" else 2
        return SupernetSpec(
            baseline.family,
            tuple(fields.widths) or tuple(width // share for width in baseline.widths),
            tuple(tuple(grid) for grid in grids),
            tuple(dilations),
            fields.stage_sharing,
            fields.kernel_sharing,
        )

    def detector(self, spec: Arch | SupernetSpec, classes: int) -> Detector:
        """The detector with this backbone."""
        fields = self.config.detector
        cascade = fields.kind.startswith("cascade")
        rpn = RPNOptions(
            anchor_sizes=tuple(fields.anchor_sizes),
            samples=fields.rpn_samples,
            pre_nms=tuple(fields.pre_nms),
            post_nms=tuple(fields.post_nms),
        )
        box = BoxHeadOptions(
            stages=CASCADE_STAGES if cascade else (BoxStage(),),
            class_agnostic=cascade,
            loss_beta=1.0 if cascade else BoxHeadOptions.loss_beta,
            head_channels=fields.head_channels,
            aligned=fields.roi_aligned,
            canonical_size=fields.canonical_size,
            samples=fields.roi_samples,
            nms_candidates=fields.nms_candidates,
        )
        mask = MaskHeadOptions(fields.mask_channels) if self.has_masks else None
        level = fields.lowest_level if fields.neck == "nas_fpn" else 0
        neck = NeckOptions(fields.neck, fields.stacks, level)
        options = DetectorOptions(classes, fields.pyramid_channels, rpn, box, mask, neck)
        frozen = Frozen(fields.freeze_at, fields.freeze_norm)
        return Detector(spec, options, self.config.remat, self.config.precision, frozen)

    def classifier(self, spec: Arch | SupernetSpec, classes: int) -> Classifier:
        """The classifier with this backbone."""
        options = ClassifierOptions(classes, self.config.pretrain.label_smoothing)
        return Classifier(spec, options, self.config.remat, self.config.precision)

    @property
    def detection_rows(self) -> DetectionRows:
        """Training rows of detection."""
        data = self.config.data
        mask_size = data.mask_size if self.has_masks else 0
        return DetectionRows(self.size, data.max_objects, data.flip, mask_size)

    @property
    def classification_rows(self) -> ClassificationRows:
        """Training rows of classification."""
        return ClassificationRows(self.config.pretrain.data.size, augment=True)

    def train_options(self, recipe: str) -> TrainOptions:
        """Of `stage_train`, `operation_train`, `detector_train` or `pretrain`."""
        fields = self.config[recipe]
        optimizer = OptimizerOptions(
            fields.rate_per_image,
            fields.momentum,
            fields.weight_decay,
            fields.schedule,
            tuple(fields.drops),
            fields.warmup_steps,
            fields.clip,
        )
        return TrainOptions(
            epochs=fields.epochs,
            batch_size=fields.batch_size,
            optimizer=optimizer,
            accumulate=fields.accumulate,
            seed=self.config.seed,
            checkpoint_seconds=fields.checkpoint_seconds,
            log_every=fields.log_every,
            devices=self.devices,
        )

    def score_options(self, bn: str, repeat: int = 0) -> ScoreOptions:
        """How subnets are scored; a `repeat` draws other images for the statistics."""
        fields = self.config.search
        return ScoreOptions(
            batch_size=fields.batch_size,
            size=self.size,
            batches=fields.batches or None,
            bn=bn,
            calibration_images=fields.calibration_images,
            chunk=fields.chunk or None,
            # Greedy candidates part at the block in question and where the kept codes part; with
            # fewer slots than that a stage is run again, with many they fill the memory.
            slots=min(fields.keep, _MOST_SLOTS) if bn == "batch" else 0,
            samples=fields.samples,
            seed=self.config.seed + repeat,
            devices=self.devices,
        )

    def cost(self, arch: Arch, classes: int) -> cost.Cost:
        """Of the whole detector with this backbone on the landscape canvas, at test time."""
        fields = self.config.detector
        return cost.total(
            cost.parts(
                arch,
                self.size.canvas(portrait=False),
                fields.kind,
                fields.neck,
                classes,
                rois=fields.post_nms[1],
                pyramid_channels=fields.pyramid_channels,
                head_channels=fields.head_channels,
                mask_channels=fields.mask_channels,
                lowest_level=fields.lowest_level,
                stacks=fields.stacks,
            )
        )

    def validate(self) -> None:
        """Raises UserError for a config that cannot run; nothing is read or written."""
        check_values(
            self.config,
            {
                "search.bn": BN_RULES,
                "search.stage_strategy": STAGE_STRATEGIES,
                "search.operation_strategy": OPERATION_STRATEGIES,
                "network": COMPARED,
                "detector.kind": DETECTORS,
                "detector.neck": cost.NECKS,
                "precision": tuple(PRECISIONS),
                "pretrain.networks": NETWORKS,
                "supernet.stage_sharing": STAGE_SHARING,
                "supernet.kernel_sharing": KERNEL_SHARING,
                "detector.freeze_at": tuple(range(6)),
                "detector.lowest_level": (2, 3),
            },
        )
        traits = zoo.find(self.config.baseline).traits
        stages = dict.fromkeys(("widths", "supernet.widths"), len(traits.widths))
        stages["supernet.grids"] = len(traits.searched)
        check_lengths(self.config, stages, or_none=True)
        recipes = [*dict.fromkeys(RECIPE_OF.values())]
        recipes += ["pretrain"] if self.config.pretrain.networks else []
        for recipe in recipes:
            options = self.train_options(recipe)
            with naming(recipe):
                make_mesh(options.batch_size, self.devices, options.accumulate)
                make_schedule(options.optimizer, options.batch_size, steps=1)
        with naming("search"):
            make_mesh(self.config.search.batch_size, self.devices)
        if self.config.data.val and self.config.data.name != "none":  # it may be searched
            _ = self.stage_space, self.operation_space(self.baseline.depths), self.stage_supernet()


def _results_only(fields: dict) -> dict:
    return {
        name: _results_only(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _EXECUTION
    }
