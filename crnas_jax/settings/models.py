"""Options of the networks: the baseline, detectors, classifiers, and their cost."""

import contextlib
import dataclasses

from ml_collections import ConfigDict

from crnas_jax.arch import Architecture, zoo
from crnas_jax.arch.cost.detectors import DETECTORS, detector_parts, total
from crnas_jax.arch.cost.layers import Cost
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.backbones.build import AnySupernet, build
from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.box_head import CASCADE_STAGES, BoxHeadOptions, BoxStage
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.layers import LayerOptions
from crnas_jax.models.rcnn import DetectorOptions, NeckOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.runtime.options import check_choice, check_counts, check_length
from crnas_jax.settings.fields import read

# The heads share the section `detector`: options that several of them have are told apart there.
_RPN_NAMES = {name: f"rpn_{name}" for name in ("nms_iou", "positive_fraction")}
_RPN_NAMES |= {"num_samples": "rpn_samples"}
_BOX_NAMES = {
    name: f"roi_{name}" for name in ("aligned", "nms_iou", "pool_size", "positive_fraction")
}
_BOX_NAMES |= {"num_samples": "roi_samples"}
_RETINA_NAMES = {"form": "head", "num_convolutions": "head_convolutions"}
# Config names of fields that are checked where backbone and detector meet.
_MEETING = {"kind": "neck", "form": "head"}
_MASK_NAMES = {name: f"mask_{name}" for name in ("channels", "num_convolutions", "pool_size")}


@dataclasses.dataclass(frozen=True)
class BaselineOptions:
    """The network to be reallocated.

    Attributes:
      baseline: name in the zoo, or a .json file with an architecture.
      widths: width of every stage of the networks that are trained in the end; () for the zoo's. A
        network without stages has none.
    """

    baseline: str
    widths: tuple[int, ...] = ()

    def __post_init__(self):
        check_counts(self, "widths")
        arch = zoo.find(self.baseline)
        if isinstance(arch, Arch):
            check_length(self, "widths", len(arch.widths), or_empty=True)
        elif self.widths:
            problem = f"{self.widths}, and {self.baseline!r} has no stages"
            raise UserError("BaselineOptions", "widths", problem, "set it to ()")


@dataclasses.dataclass(frozen=True)
class DetectorKind:
    """The kind of detector.

    Attributes:
      kind: one of `DETECTORS`.
    """

    kind: str

    def __post_init__(self):
        check_choice(self, "kind", DETECTORS)


def baseline(config: ConfigDict) -> Architecture:
    """Read the network to be reallocated, at the config's widths where it names some."""
    options = read(BaselineOptions, config, "")
    arch = zoo.find(options.baseline)
    return dataclasses.replace(arch, widths=options.widths) if options.widths else arch


def found_arch(config: ConfigDict, depths: tuple[int, ...]) -> Arch:
    """Return the network of an allocation, at the widths that are trained in the end."""
    arch = baseline(config)
    return Arch(arch.family, depths, (), arch.widths)


def dilated(arch: Architecture, dilations: tuple[int, ...] = ()) -> Architecture:
    """Return a network with other dilations of its blocks; () for none."""
    return dataclasses.replace(arch, dilations=tuple(dilations))


def detector_kind(config: ConfigDict) -> str:
    """Read the kind of detector, one of `DETECTORS`."""
    return read(DetectorKind, config, "detector").kind


def has_masks(config: ConfigDict) -> bool:
    """Return whether the detector has a mask head."""
    return "mask" in detector_kind(config)


def neck_options(config: ConfigDict, arch: Architecture | None = None) -> NeckOptions:
    """Read the settings of the neck on a backbone, the baseline when None.

    `lowest_level` applies to NAS-FPN alone.
    """
    options = read(NeckOptions, config, "detector", {"kind": "neck"})
    with _placed("detector"):
        return options.for_backbone(arch or baseline(config))


def layer_options(config: ConfigDict, section: str) -> LayerOptions:
    """Read what the layers of a network have in common from `detector` or `pretrain`."""
    return read(LayerOptions, config, section)


def detector_options(
    config: ConfigDict, num_classes: int, arch: Architecture | None = None
) -> DetectorOptions | RetinaNetOptions:
    """Read everything about the detector except its backbone.

    Args:
      config: the config.
      num_classes: number of object classes.
      arch: backbone that it follows where the config leaves a field open; the baseline when None.
    """
    arch = arch or baseline(config)
    neck = neck_options(config, arch)
    # A wrong name of a head is refused in every detector.
    head = read(RetinaHeadOptions, config, "detector", _RETINA_NAMES)
    if detector_kind(config) == "retinanet":
        given = {"num_classes": num_classes, "head": head, "neck": neck}
        options = read(RetinaNetOptions, config, "detector", **given)
        with _placed("detector"):
            return options.for_backbone(arch)
    cascade = detector_kind(config).startswith("cascade")
    rpn = read(RPNOptions, config, "detector", _RPN_NAMES)
    box = read(
        BoxHeadOptions,
        config,
        "detector",
        _BOX_NAMES,
        stages=CASCADE_STAGES if cascade else (BoxStage(),),
        class_agnostic=cascade,
        loss_beta=1.0 if cascade else BoxHeadOptions.loss_beta,
    )
    mask = read(MaskHeadOptions, config, "detector", _MASK_NAMES)
    return read(
        DetectorOptions,
        config,
        "detector",
        num_classes=num_classes,
        rpn=rpn,
        box=box,
        mask=mask if has_masks(config) else None,
        neck=neck,
    )


def detector(config: ConfigDict, spec: Architecture | AnySupernet, num_classes: int) -> Detector:
    """Return the detector with this backbone."""
    arch = build(spec, remat=False, freeze=FreezeOptions()).arch
    return _model(Detector, config, "detector", spec, detector_options(config, num_classes, arch))


def classifier(
    config: ConfigDict, spec: Architecture | AnySupernet, num_classes: int
) -> Classifier:
    """Return the classifier with this backbone."""
    options = read(ClassifierOptions, config, "pretrain", num_classes=num_classes)
    return _model(Classifier, config, "pretrain", spec, options)


def _model(model_class, config, section, spec, options):
    is_detector = section == "detector"
    freeze = read(FreezeOptions, config, section) if is_detector else FreezeOptions()
    given = {"freeze": freeze, "layers": layer_options(config, section)}
    with _placed(section):
        return read(model_class, config, "", spec=spec, options=options, **given)


@contextlib.contextmanager
def _placed(section):
    """Name the config's field in errors about options that do not fit the backbone."""
    try:
        yield
    except UserError as error:
        if not error.where.endswith("Options"):
            raise
        field = _MEETING.get(error.field, error.field)
        raise UserError("config", f"{section}.{field}", error.problem, error.remedy) from error


def detector_cost(
    config: ConfigDict, arch: Architecture, canvas: tuple[int, int], num_classes: int
) -> Cost:
    """Count the whole detector with this backbone at test time on `canvas` (height, width)."""
    return total(cost_by_part(config, arch, canvas, num_classes))


def cost_by_part(
    config: ConfigDict,
    arch: Architecture,
    canvas: tuple[int, int],
    num_classes: int,
    convention: str = "macs",
) -> dict[str, Cost]:
    """Count the parts of a detector, see `detector_cost`; `convention` as in `detector_parts`."""
    options = detector_options(config, num_classes, arch)
    shared = (arch, canvas, detector_kind(config), options.neck.kind, num_classes)
    if isinstance(options, RetinaNetOptions):
        return detector_parts(
            *shared,
            convention=convention,
            pyramid_channels=options.pyramid_channels,
            stacks=options.neck.stacks,
            head=options.head.form,
            p6_from=options.p6_from,
            head_convolutions=options.head.num_convolutions,
            separable=options.head.separable,
        )
    mask = options.mask or MaskHeadOptions()
    return detector_parts(
        *shared,
        num_rois=options.rpn.post_nms[1],
        num_mask_rois=options.box.max_detections,
        convention=convention,
        pyramid_channels=options.pyramid_channels,
        head_channels=options.box.head_channels,
        roi_pool_size=options.box.pool_size,
        mask_channels=mask.channels,
        mask_convolutions=mask.num_convolutions,
        mask_pool_size=mask.pool_size,
        lowest_level=options.neck.lowest_level,
        stacks=options.neck.stacks,
    )
