"""Conversion of torchvision's weights to the names and layouts of this package.

Convolution kernels OIHW become HWIO, dense kernels (out, in) become (in, out), and the first dense
kernel behind a pooled RoI goes from C, H, W to H, W, C order. The parameter that torchvision calls
`weight` in a batch normalisation is `scale` here.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import PyTree

from crnas_jax.arch import zoo
from crnas_jax.arch.families import ConvShape
from crnas_jax.arch.staged import Arch, Part
from crnas_jax.errors import UserError
from crnas_jax.interop import prefixes
from crnas_jax.models.build import Classifier, Detector, Model
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.rcnn import DetectorOptions

CLASSIFIERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "mobilenet_v2")
DETECTORS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
# COCO's class names by category id from 1; a dash is an id without a class.
_COCO_CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light "
    "fire_hydrant - stop_sign parking_meter bench bird cat dog horse sheep cow "
    "elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove "
    "skateboard surfboard tennis_racket bottle - wine_glass cup fork knife spoon "
    "bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake "
    "chair couch potted_plant bed - dining_table - - toilet - tv laptop mouse "
    "remote keyboard cell_phone microwave oven toaster sink refrigerator - "
    "book clock vase scissors teddy_bear hair_drier toothbrush "
)
# Patterns of tensor names from before torchvision 0.13, and the present names.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
        lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}",
    ),
)
# Counters that torch keeps for a way of averaging that is not used.
_IGNORED = "num_batches_tracked"
_EPSILON = 1e-5
# Side of the pooled RoI in torchvision's box head.
_POOL_SIZE = 7


@dataclasses.dataclass(frozen=True)
class _Layer:
    """One layer with weights.

    Attributes:
      prefix: torchvision's name of the module.
      path: path of its parameters in a collection of variables.
      kind: `conv`, `norm`, `dense`, `pooled` (a dense layer behind a pooled RoI) or `upsampling` (a
        transposed convolution).
    """

    prefix: str
    path: tuple[str, ...]
    kind: str


def convert(
    state: dict[str, np.ndarray], name: str, epsilon: float = _EPSILON, prefix: str | None = None
) -> tuple[Model, PyTree, list[str]]:
    """Build a network and its variables from torchvision's state dict.

    Args:
      state: tensors by torchvision's names, old or new, perhaps with a prefix (`prefixes.strip`).
      name: one of `CLASSIFIERS` or `DETECTORS`.
      epsilon: epsilon of the batch normalisation that the weights were trained with: 0 for the
        detectors that torchvision calls COCO_V1. Where it differs from 1e-5, the scale is changed
        so that the outputs stay the same.
      prefix: prefix of the names; None to find it.

    Returns:
      The model, its variables (NumPy), and the names of the tensors that are not needed: those
      without the prefix, and torch's counters.

    Raises:
      UserError: a tensor is missing, has another shape, is unknown or not finite.
    """
    if not 0 <= epsilon < 1:
        raise UserError("torchvision", "epsilon", f"{epsilon}", "give a small number, or 0")
    state, _, outside = prefixes.strip(state, _anchors(name), prefix)
    renamed = {_present_name(key): value for key, value in state.items()}
    if len(renamed) != len(state):
        old_keys = (key for key in state if _present_name(key) != key)
        old = next(key for key in old_keys if _present_name(key) in state)
        raise _fault(name, old, f"there is {_present_name(old)} too, its present name")
    state = renamed
    model = _model(state, name)
    variables: PyTree = {"params": {}, "batch_stats": {}}
    layers = list(_layers(model))
    counters = {f"{layer.prefix}.{_IGNORED}" for layer in layers if layer.kind == "norm"}
    ignored = sorted(counters & set(state))
    used = set(ignored)
    for layer in layers:
        leaves = _norm_leaves if layer.kind == "norm" else _kernel_leaves
        for collection, leaf, tensor, value in leaves(layer, state, epsilon):
            used.add(tensor)
            _put(variables[collection], (*layer.path, leaf), value)
    unknown = sorted(set(state) - used)
    if unknown:
        raise _fault(name, ", ".join(unknown[:5]), f"{len(unknown)} tensors are unknown")
    _require_shapes(model, variables, name)
    return model, variables, [*outside, *ignored]


def _anchors(name):
    """Return names, old and new alike, that only this kind of model has."""
    if name in DETECTORS:
        return ["backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.bias"]
    if name not in CLASSIFIERS:
        names = CLASSIFIERS + DETECTORS
        raise UserError("torchvision", "name", f"{name!r} is unknown", f"use one of {names}")
    mobile = name == "mobilenet_v2"
    return ["features.0.0.weight", "classifier.1.bias"] if mobile else ["conv1.weight", "fc.bias"]


def categories(num_classes: int) -> tuple[list[int], list[str]]:
    """Return ids and names of a detector's classes.

    They are COCO's 1..90, of which ten do not exist, if there are 90 classes, and numbered ones
    otherwise.
    """
    ids, names = list(range(1, num_classes + 1)), _COCO_CLASSES.split()
    if num_classes != len(names):
        return ids, [f"class {label}" for label in ids]
    pairs = zip(ids, names, strict=True)
    return ids, [f"unused {i}" if name == "-" else name.replace("_", " ") for i, name in pairs]


def _present_name(name):
    for old, new in _OLD_NAMES:
        name = re.sub(f"^{old}$", new, name)
    return name


def _model(state, name):
    if name in DETECTORS:
        biases = _tensor(state, "roi_heads.box_predictor.cls_score.bias", name)
        mask = MaskHeadOptions() if name.startswith("mask") else None
        num_classes = max(len(biases) - 1, 1)  # the background has a bias too
        return Detector(zoo.get("resnet50"), DetectorOptions(num_classes, mask=mask))
    arch = zoo.get(name)
    biases = _tensor(state, f"{_NAMINGS[arch.traits.design].head}.bias", name)
    return Classifier(arch, ClassifierOptions(max(len(biases), 1)))


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
_NAMINGS = {
    "resnet": _Naming("fc", _resnet_names),
    "mobilenet_v2": _Naming("classifier.1", _mobilenet_v2_names),
}


def _layers(model: Model) -> Iterator[_Layer]:
    """Yield all layers of a model."""
    arch = model.spec
    if isinstance(model, Classifier):
        yield from _backbone_layers(arch, "")
        yield _Layer(_NAMINGS[arch.traits.design].head, ("head",), "dense")
        return
    yield from _backbone_layers(arch, "backbone.body.")
    for index in range(4):
        neck = "backbone.fpn.{}_blocks.{}.0"
        yield _Layer(neck.format("inner", index), ("fpn", f"lateral{index + 2}"), "conv")
        yield _Layer(neck.format("layer", index), ("fpn", f"output{index + 2}"), "conv")
    yield _Layer("rpn.head.conv.0.0", ("rpn", "conv"), "conv")
    yield _Layer("rpn.head.cls_logits", ("rpn", "objectness"), "conv")
    yield _Layer("rpn.head.bbox_pred", ("rpn", "box"), "conv")
    yield _Layer("roi_heads.box_head.fc6", ("box_head", "fc6"), "pooled")
    yield _Layer("roi_heads.box_head.fc7", ("box_head", "fc7"), "dense")
    yield _Layer("roi_heads.box_predictor.cls_score", ("box_head", "class"), "dense")
    yield _Layer("roi_heads.box_predictor.bbox_pred", ("box_head", "box"), "dense")
    if model.options.mask:
        for index in range(model.options.mask.num_convolutions):
            prefix = f"roi_heads.mask_head.{index}.0"
            yield _Layer(prefix, ("mask_head", f"conv{index + 1}"), "conv")
        predictor = "roi_heads.mask_predictor."
        yield _Layer(f"{predictor}conv5_mask", ("mask_head", "upsampling"), "upsampling")
        yield _Layer(f"{predictor}mask_fcn_logits", ("mask_head", "logits"), "conv")


def _backbone_layers(arch: Arch, prefix: str) -> Iterator[_Layer]:
    """Yield the layers of a backbone; torchvision's names of all of them begin with `prefix`."""
    unit_names, unit = _NAMINGS[arch.traits.design].unit_names, 0
    for part in arch.parts():
        for block in range(len(part.units)):
            path = ("backbone", part.name)
            if part.kind == "stage":
                path = (*path, f"block{block + 1}")
            for shape, conv_name, norm_name in unit_names(part, block, unit):
                conv, norm = (f"{shape.prefix}{module}{shape.name}" for module in ("conv", "bn"))
                yield _Layer(f"{prefix}{conv_name}", (*path, conv), "conv")
                yield _Layer(f"{prefix}{norm_name}", (*path, norm), "norm")
            unit += 1


def _norm_leaves(layer, state, epsilon):
    """Yield (collection, leaf, torchvision's name, value) for a batch normalisation."""

    def tensor(name):
        return _tensor(state, f"{layer.prefix}.{name}", layer.prefix)

    scale, variance = tensor("weight"), tensor("running_var")
    if (variance < 0).any():
        raise _fault(layer.prefix, "running_var", "below 0")
    if epsilon != _EPSILON:
        if (variance + epsilon <= 0).any():
            raise _fault(layer.prefix, "running_var", "not above 0, with an epsilon of 0")
        scale = scale * np.sqrt((variance.astype(float) + _EPSILON) / (variance + epsilon))
    values = {"scale": ("weight", scale), "bias": ("bias", tensor("bias"))}
    for leaf, (name, value) in values.items():
        yield "params", leaf, f"{layer.prefix}.{name}", value.astype(np.float32)
    for leaf, name in (("mean", "running_mean"), ("var", "running_var")):
        yield "batch_stats", leaf, f"{layer.prefix}.{name}", tensor(name)


def _kernel_leaves(layer, state, epsilon):
    """Yield (collection, leaf, torchvision's name, value) for any other layer."""
    del epsilon
    kernel_name, bias_name = f"{layer.prefix}.weight", f"{layer.prefix}.bias"
    kernel = _tensor(state, kernel_name, layer.prefix)
    # Kernels with a wrong number of axes stay as they are: their shapes are refused later.
    if layer.kind == "conv" and kernel.ndim == 4:
        kernel = kernel.transpose(2, 3, 1, 0)
    elif layer.kind == "upsampling" and kernel.ndim == 4:
        # A transposed convolution has (in, out, height, width), unflipped.
        kernel = kernel.transpose(2, 3, 0, 1)
    elif layer.kind == "pooled" and kernel.ndim == 2 and kernel.shape[1] % _POOL_SIZE**2 == 0:
        kernel = kernel.reshape(len(kernel), -1, _POOL_SIZE, _POOL_SIZE).transpose(2, 3, 1, 0)
        kernel = kernel.reshape(-1, kernel.shape[-1])
    elif layer.kind == "dense":
        kernel = kernel.T
    yield "params", "kernel", kernel_name, kernel
    if bias_name in state:
        yield "params", "bias", bias_name, _tensor(state, bias_name, layer.prefix)


def _tensor(state, key, where):
    if key not in state:
        raise _fault(where, key, "missing")
    value = np.atleast_1d(state[key])
    if not np.isfinite(value.astype(np.float32)).all():
        raise _fault(where, key, "not finite")
    return value.astype(np.float32)


def _put(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = np.ascontiguousarray(value)


def _require_shapes(model, variables, name):
    """Raise UserError unless the variables are those of the model and have its shapes."""
    expected, converted = _shapes(model.shapes), _shapes(variables)
    for path in sorted(set(expected) | set(converted)):
        if expected.get(path) != converted.get(path):
            problem = f"shape {converted.get(path)}, {name} has {expected.get(path)}"
            raise _fault(name, "/".join(path), problem)


def _shapes(tree, path=()):
    """Return the shape of every leaf by its path."""
    if not isinstance(tree, dict):
        return {path: tuple(tree.shape)}
    subtrees = (_shapes(value, (*path, key)) for key, value in tree.items())
    return {key: shape for shapes in subtrees for key, shape in shapes.items()}


def _fault(where, field, problem):
    remedy = "give the state dict of this torchvision model, or name the model it belongs to"
    return UserError(where, field, problem, remedy)
