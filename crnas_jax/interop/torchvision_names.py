"""How torchvision names the layers of its models, in order."""

import dataclasses
import re
from collections.abc import Callable, Iterator

from crnas_jax.arch.families import ConvShape
from crnas_jax.arch.staged import Arch, Part
from crnas_jax.models.build import Classifier, Model
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.retinanet import RetinaNetOptions

# Patterns of tensor names from before torchvision 0.13, and the present names.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
        lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
    ),
    (
        r"(head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)",
        lambda match: f"{match[1]}.{int(match[2]) // 2}.0.{match[3]}",
    ),
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
      prefix: torchvision's name of the module.
      path: path of its parameters in a collection of variables.
      kind: `conv`, `norm`, `group_norm`, `dense`, `pooled` (a dense layer behind a pooled RoI) or
        `upsampling` (a transposed convolution).
    """

    prefix: str
    path: tuple[str, ...]
    kind: str


def present_name(name: str) -> str:
    """Return the present name of a tensor that may have an old one."""
    for old, new in _OLD_NAMES:
        name = re.sub(f"^{old}$", new, name)
    return name


# A convolution of a backbone, torchvision's name for it, and for the normalisation after it.
_ConvNames = tuple[ConvShape, str, str]


def _resnet_names(part: Part, block: int, unit: int) -> Iterator[_ConvNames]:
    """Name the stem `conv1`, and blocks `layer1.0` and so on, their shortcuts `downsample`."""
    del unit
    prefix = "" if part.kind == "stem" else f"layer{part.stage + 1}.{block}."
    shape = part.units[block]
    for convolution in shape.convolutions:
        yield convolution, f"{prefix}conv{convolution.name}", f"{prefix}bn{convolution.name}"
    if shape.projection:
        yield shape.projection, f"{prefix}downsample.0", f"{prefix}downsample.1"


def _mobilenet_v2_names(part: Part, block: int, unit: int) -> Iterator[_ConvNames]:
    """Name all units in order `features.0` and so on; each is a sequence of layers.

    In a block, every convolution but the last is itself a sequence with its normalisation.
    """
    *inner, last = part.units[block].convolutions
    prefix = f"features.{unit}." if part.kind != "stage" else f"features.{unit}.conv."
    for index, convolution in enumerate(inner):
        yield convolution, f"{prefix}{index}.0", f"{prefix}{index}.1"
    yield last, f"{prefix}{len(inner)}", f"{prefix}{len(inner) + 1}"


@dataclasses.dataclass(frozen=True)
class _Naming:
    """How torchvision names the layers of a family of backbones and its classifiers.

    Attributes:
      head: name of a classifier's dense layer.
      unit_names: function of (part, position of the unit in the part, position in the network)
        that yields the unit's convolutions with their names.
    """

    head: str
    unit_names: Callable[[Part, int, int], Iterator[_ConvNames]]


# By `Family.design`.
NAMINGS = {
    "resnet": _Naming("fc", _resnet_names),
    "mobilenet_v2": _Naming("classifier.1", _mobilenet_v2_names),
}


def list_layers(model: Model) -> Iterator[Layer]:
    """Yield all layers of a model."""
    arch = model.spec
    if isinstance(model, Classifier):
        yield from _backbone_layers(arch, "")
        yield Layer(NAMINGS[arch.traits.design].head, ("head",), "dense")
        return
    yield from _backbone_layers(arch, "backbone.body.")
    is_retinanet = isinstance(model.options, RetinaNetOptions)
    for index, level in enumerate(range(3 if is_retinanet else 2, 6)):
        neck = "backbone.fpn.{}_blocks.{}.0"
        yield Layer(neck.format("inner", index), ("fpn", f"lateral{level}"), "conv")
        yield Layer(neck.format("layer", index), ("fpn", f"output{level}"), "conv")
    if is_retinanet:
        yield from _retinanet_layers(model.options.head)
        return
    yield Layer("rpn.head.conv.0.0", ("rpn", "conv"), "conv")
    yield Layer("rpn.head.cls_logits", ("rpn", "objectness"), "conv")
    yield Layer("rpn.head.bbox_pred", ("rpn", "box"), "conv")
    yield Layer("roi_heads.box_head.fc6", ("box_head", "fc6"), "pooled")
    yield Layer("roi_heads.box_head.fc7", ("box_head", "fc7"), "dense")
    yield Layer("roi_heads.box_predictor.cls_score", ("box_head", "class"), "dense")
    yield Layer("roi_heads.box_predictor.bbox_pred", ("box_head", "box"), "dense")
    if model.options.mask:
        for index in range(model.options.mask.num_convolutions):
            prefix = f"roi_heads.mask_head.{index}.0"
            yield Layer(prefix, ("mask_head", f"conv{index + 1}"), "conv")
        predictor = "roi_heads.mask_predictor."
        yield Layer(f"{predictor}conv5_mask", ("mask_head", "upsampling"), "upsampling")
        yield Layer(f"{predictor}mask_fcn_logits", ("mask_head", "logits"), "conv")


def _retinanet_layers(options: RetinaHeadOptions) -> Iterator[Layer]:
    """Yield the layers of RetinaNet behind FPN's first levels."""
    for level in (6, 7):
        yield Layer(f"backbone.fpn.extra_blocks.p{level}", ("fpn", f"output{level}"), "conv")
    heads = (("classification", "class", "cls_logits"), ("regression", "box", "bbox_reg"))
    for theirs, ours, predictor in heads:
        prefix = f"head.{theirs}_head"
        for index in range(options.num_convolutions):
            path = ("head", "towers", f"{ours}_conv{index + 1}")
            yield Layer(f"{prefix}.conv.{index}.0", path, "conv")
            if options.form == "torchvision_v2":
                path = (*path[:2], f"{ours}_norm{index + 1}")
                yield Layer(f"{prefix}.conv.{index}.1", path, "group_norm")
        yield Layer(f"{prefix}.{predictor}", ("head", "predictors", ours), "conv")


def _backbone_layers(arch: Arch, prefix: str) -> Iterator[Layer]:
    """Yield the layers of a backbone; torchvision's names of all of them begin with `prefix`."""
    unit_names, unit = NAMINGS[arch.traits.design].unit_names, 0
    for part in arch.parts():
        for block in range(len(part.units)):
            path = ("backbone", part.name)
            if part.kind == "stage":
                path = (*path, f"block{block + 1}")
            for shape, conv_name, norm_name in unit_names(part, block, unit):
                conv, norm = (f"{shape.prefix}{module}{shape.name}" for module in ("conv", "bn"))
                yield Layer(f"{prefix}{conv_name}", (*path, conv), "conv")
                yield Layer(f"{prefix}{norm_name}", (*path, norm), "norm")
            unit += 1
