"""torchvision's weights in our names and layouts.

Kernels OIHW become HWIO, dense layers (out, in) become (in, out), and the first dense layer behind
a pooled RoI goes from C, H, W to our H, W, C order. What torchvision calls `weight` of a batch
normalisation is `scale` here.
"""

import dataclasses
import re

import numpy as np
from jaxtyping import PyTree

from crnas_jax.arch import zoo
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.build import Classifier, Detector, Model
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.rcnn import DetectorOptions

CLASSIFIERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "mobilenet_v2")
# COCO's classes by their ids from 1; a dash is an id without a class.
_COCO = (
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
DETECTORS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
# Names of files from before torchvision 0.13, and what they are now.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)",
        lambda found: f"roi_heads.mask_head.{int(found[1]) - 1}.0.{found[2]}",
    ),
)
# Counters that torch keeps for an average we do not use.
_IGNORED = "num_batches_tracked"
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class _Module:
    """A layer here and there; `kind` is `conv`, `norm`, `dense`, `pooled` (a dense layer behind a
    pooled RoI) or `doubling` (a transposed convolution)."""

    theirs: str
    ours: tuple[str, ...]
    kind: str


def convert(
    state: dict[str, np.ndarray], name: str, epsilon: float = _EPSILON
) -> tuple[Model, PyTree, list[str]]:
    """A network and its variables from torchvision's state dict.

    Args:
      state: tensors by torchvision's names, old or new.
      name: of `CLASSIFIERS` or `DETECTORS`.
      epsilon: of its batch normalisation: 0 of the detectors that torchvision calls COCO_V1. Where
        it is not ours, the scale is changed so that the outputs are the same.

    Returns:
      The model, its variables (NumPy), and the names of the tensors that are of no use here.

    Raises:
      UserError: a tensor is missing, has another shape, is not known or not finite.
    """
    if not 0 <= epsilon < 1:
        raise UserError("torchvision", "epsilon", f"{epsilon}", "give a small number, or 0")
    renamed = {_current(key): value for key, value in state.items()}
    if len(renamed) != len(state):
        twice = next(key for key in state if _current(key) != key and _current(key) in state)
        raise _fault(name, twice, f"there is {_current(twice)} too, its present name")
    state = renamed
    model = _model(state, name)
    variables: PyTree = {"params": {}, "batch_stats": {}}
    modules = list(_modules(model, name))
    counters = {f"{module.theirs}.{_IGNORED}" for module in modules if module.kind == "norm"}
    ignored = sorted(counters & set(state))
    used = set(ignored)
    for module in modules:
        for collection, leaf, tensor, value in _leaves(module, state, epsilon):
            used.add(tensor)
            _put(variables[collection], (*module.ours, leaf), value)
    unknown = sorted(set(state) - used)
    if unknown:
        raise _fault(name, ", ".join(unknown[:5]), f"{len(unknown)} tensors it has not")
    _require_shapes(model, variables, name)
    return model, variables, ignored


def categories(number: int) -> tuple[list[int], list[str]]:
    """Ids and names of a detector's classes: COCO's 1..90, of which ten do not exist, where it has
    as many; else numbers.
    """
    ids, names = list(range(1, number + 1)), _COCO.split()
    if number != len(names):
        return ids, [f"class {label}" for label in ids]
    pairs = zip(ids, names, strict=True)
    return ids, [f"unused {i}" if n == "-" else n.replace("_", " ") for i, n in pairs]


def _current(name):
    for old, new in _OLD_NAMES:
        name = re.sub(f"^{old}$", new, name)
    return name


def _model(state, name):
    if name in DETECTORS:
        rows = _tensor(state, "roi_heads.box_predictor.cls_score.bias", name)
        mask = MaskHeadOptions() if name.startswith("mask") else None
        return Detector(zoo.get("resnet50"), DetectorOptions(max(len(rows) - 1, 1), mask=mask))
    if name not in CLASSIFIERS:
        names = CLASSIFIERS + DETECTORS
        raise UserError("torchvision", "name", f"{name!r} is unknown", f"use one of {names}")
    head = "classifier.1" if name == "mobilenet_v2" else "fc"
    rows = _tensor(state, f"{head}.bias", name)
    return Classifier(zoo.get(name), ClassifierOptions(max(len(rows), 1)))


def _modules(model, name):
    if isinstance(model, Classifier):
        yield from _backbone(model.spec, "")
        head = "classifier.1" if name == "mobilenet_v2" else "fc"
        yield _Module(head, ("head",), "dense")
        return
    yield from _backbone(model.spec, "backbone.body.")
    for level in range(4):
        neck = "backbone.fpn.{}_blocks.{}.0"
        yield _Module(neck.format("inner", level), ("fpn", f"lateral{level + 2}"), "conv")
        yield _Module(neck.format("layer", level), ("fpn", f"output{level + 2}"), "conv")
    yield _Module("rpn.head.conv.0.0", ("rpn", "conv"), "conv")
    yield _Module("rpn.head.cls_logits", ("rpn", "objectness"), "conv")
    yield _Module("rpn.head.bbox_pred", ("rpn", "box"), "conv")
    yield _Module("roi_heads.box_head.fc6", ("box_head", "fc6"), "pooled")
    yield _Module("roi_heads.box_head.fc7", ("box_head", "fc7"), "dense")
    yield _Module("roi_heads.box_predictor.cls_score", ("box_head", "class"), "dense")
    yield _Module("roi_heads.box_predictor.bbox_pred", ("box_head", "box"), "dense")
    if model.options.mask:
        for index in range(4):
            theirs = f"roi_heads.mask_head.{index}.0"
            yield _Module(theirs, ("mask_head", f"conv{index + 1}"), "conv")
        predictor = "roi_heads.mask_predictor."
        yield _Module(f"{predictor}conv5_mask", ("mask_head", "upsampling"), "doubling")
        yield _Module(f"{predictor}mask_fcn_logits", ("mask_head", "logits"), "conv")


def _backbone(arch: Arch, prefix):
    def pair(conv, norm, *ours, number="", before=""):
        yield _Module(f"{prefix}{conv}", ("backbone", *ours, f"{before}conv{number}"), "conv")
        yield _Module(f"{prefix}{norm}", ("backbone", *ours, f"{before}bn{number}"), "norm")

    inverted = arch.traits.block == "inverted"
    stem = ("features.0.0", "features.0.1") if inverted else ("conv1", "bn1")
    yield from pair(*stem, "stem", number=1)
    feature = 1
    for stage, depth in enumerate(arch.stage_depths):
        for index in range(depth):
            shape = arch.block(stage, first=index == 0)
            ours = (f"stage{stage + 1}", f"block{index + 1}")
            if inverted:
                theirs = f"features.{feature}.conv"
                places = ["0", "1"] if shape.expands else ["0"]
                for number, place in enumerate(places, 1 if shape.expands else 2):
                    names = (f"{theirs}.{place}.0", f"{theirs}.{place}.1")
                    yield from pair(*names, *ours, number=number)
                last = len(places)
                names = (f"{theirs}.{last}", f"{theirs}.{last + 1}")
                yield from pair(*names, *ours, number=3)
                feature += 1
                continue
            theirs = f"layer{stage + 1}.{index}"
            for number in range(1, 3 if shape.kind == "basic" else 4):
                names = (f"{theirs}.conv{number}", f"{theirs}.bn{number}")
                yield from pair(*names, *ours, number=number)
            if shape.projects:
                names = (f"{theirs}.downsample.0", f"{theirs}.downsample.1")
                yield from pair(*names, *ours, before="downsample_")
    if arch.tail_channels:
        yield from pair(f"features.{feature}.0", f"features.{feature}.1", "tail", number=1)


def _leaves(module, state, epsilon):
    """(collection, leaf, their tensor, value) of one layer."""

    def tensor(name):
        return _tensor(state, f"{module.theirs}.{name}", module.theirs)

    if module.kind == "norm":
        scale, variance = tensor("weight"), tensor("running_var")
        if (variance < 0).any():
            raise _fault(module.theirs, "running_var", "below 0")
        if epsilon != _EPSILON:
            if (variance + epsilon <= 0).any():
                raise _fault(module.theirs, "running_var", "not above 0, with an epsilon of 0")
            scale = scale * np.sqrt((variance.astype(float) + _EPSILON) / (variance + epsilon))
        values = {"scale": ("weight", scale), "bias": ("bias", tensor("bias"))}
        for leaf, (name, value) in values.items():
            yield "params", leaf, f"{module.theirs}.{name}", value.astype(np.float32)
        for leaf, name in (("mean", "running_mean"), ("var", "running_var")):
            yield "batch_stats", leaf, f"{module.theirs}.{name}", tensor(name)
        return
    weight = tensor("weight")
    if module.kind in ("conv", "doubling") and weight.ndim == 4:
        # A transposed convolution's are (in, out, height, width), unflipped.
        weight = weight.transpose((2, 3, 1, 0) if module.kind == "conv" else (2, 3, 0, 1))
    elif module.kind == "pooled" and weight.ndim == 2 and weight.shape[1] % 49 == 0:
        weight = weight.reshape(len(weight), -1, 7, 7).transpose(2, 3, 1, 0)
        weight = weight.reshape(-1, weight.shape[-1])
    elif module.kind == "dense":
        weight = weight.T
    yield "params", "kernel", f"{module.theirs}.weight", weight
    if f"{module.theirs}.bias" in state:
        yield "params", "bias", f"{module.theirs}.bias", tensor("bias")


def _tensor(state, key, name):
    if key not in state:
        raise _fault(name, key, "missing")
    value = np.atleast_1d(state[key])
    if not np.isfinite(value.astype(np.float32)).all():
        raise _fault(name, key, "not finite")
    return value.astype(np.float32)


def _put(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = np.ascontiguousarray(value)


def _require_shapes(model, variables, name):
    """Every leaf of the network is there and has its shape."""
    expected, found = _shapes(model.shapes), _shapes(variables)
    for path in sorted(set(expected) | set(found)):
        if expected.get(path) != found.get(path):
            problem = f"shape {found.get(path)}, {name} has {expected.get(path)}"
            raise _fault(name, "/".join(path), problem)


def _shapes(tree, path=()):
    if not isinstance(tree, dict):
        return {path: tuple(tree.shape)}
    inner = (_shapes(value, (*path, key)) for key, value in tree.items())
    return {key: shape for found in inner for key, shape in found.items()}


def _fault(where, field, problem):
    remedy = "give the state dict of this torchvision model, or name the one it is of"
    return UserError(where, field, problem, remedy)
