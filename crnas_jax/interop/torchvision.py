"""Conversion of torchvision's weights to the names and layouts of this package.

Convolution kernels OIHW become HWIO, dense kernels (out, in) become (in, out), and the first dense
kernel behind a pooled RoI goes from C, H, W to H, W, C order. The parameter that torchvision calls
`weight` in a batch normalisation is `scale` here.
"""

import numpy as np
from jaxtyping import PyTree

from crnas_jax.arch import zoo
from crnas_jax.arch.cost.detectors import NUM_RETINA_ANCHORS
from crnas_jax.errors import UserError
from crnas_jax.interop import prefixes
from crnas_jax.interop.torchvision_names import NAMINGS, list_layers, present_name
from crnas_jax.models.build import Classifier, Detector, Model
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.heads.mask_head import MaskHeadOptions
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.models.retinanet import RetinaNetOptions

CLASSIFIERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "mobilenet_v2")
_RETINANETS = {
    # torchvision's name: form of the head, and what p6 is computed from.
    "retinanet_resnet50_fpn": ("torchvision", "p5"),
    "retinanet_resnet50_fpn_v2": ("torchvision_v2", "c5"),
}
DETECTORS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", *_RETINANETS)
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
# Counters that torch keeps for a way of averaging that is not used.
_IGNORED = "num_batches_tracked"
_EPSILON = 1e-5
# Side of the pooled RoI in torchvision's box head.
_POOL_SIZE = 7


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
    renamed = {present_name(key): value for key, value in state.items()}
    if len(renamed) != len(state):
        old_keys = (key for key in state if present_name(key) != key)
        old = next(key for key in old_keys if present_name(key) in state)
        raise _fault(name, old, f"there is {present_name(old)} too, its present name")
    state = renamed
    model = _model(state, name)
    variables: PyTree = {"params": {}, "batch_stats": {}}
    layers = list(list_layers(model))
    counters = {f"{layer.prefix}.{_IGNORED}" for layer in layers if layer.kind == "norm"}
    ignored = sorted(counters & set(state))
    used = set(ignored)
    for layer in layers:
        leaves = _LEAVES.get(layer.kind, _kernel_leaves)
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
    if name in _RETINANETS:
        return ["backbone.body.conv1.weight", "head.classification_head.cls_logits.bias"]
    if name in DETECTORS:
        return ["backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.bias"]
    if name not in CLASSIFIERS:
        names = CLASSIFIERS + DETECTORS
        raise UserError("torchvision", "name", f"{name!r} is unknown", f"use one of {names}")
    mobile = name == "mobilenet_v2"
    return ["features.0.0.weight", "classifier.1.bias"] if mobile else ["conv1.weight", "fc.bias"]


def categories(
    options: DetectorOptions | RetinaNetOptions,
) -> tuple[list[int], list[str]]:
    """Return ids and names of a detector's classes.

    They are COCO's 1..90, of which ten do not exist, if there are 90 classes, and numbered ones
    otherwise. Ids of a RetinaNet are from 0, as its labels are there; of COCO's 91 that is unused.
    """
    num_classes, names = options.num_classes, _COCO_CLASSES.split()
    first = 0 if isinstance(options, RetinaNetOptions) else 1
    ids, names = list(range(first, first + num_classes)), ["-"] * (1 - first) + names
    if num_classes != len(names):
        return ids, [f"class {label}" for label in ids]
    pairs = zip(ids, names, strict=True)
    return ids, [f"unused {i}" if name == "-" else name.replace("_", " ") for i, name in pairs]


def _model(state, name):
    if name in _RETINANETS:
        form, p6_from = _RETINANETS[name]
        biases = _tensor(state, "head.classification_head.cls_logits.bias", name)
        num_classes = max(len(biases) // NUM_RETINA_ANCHORS, 1)
        head = RetinaHeadOptions(form, max_detections=300)
        return Detector(
            zoo.get("resnet50"), RetinaNetOptions(num_classes, head=head, p6_from=p6_from)
        )
    if name in DETECTORS:
        biases = _tensor(state, "roi_heads.box_predictor.cls_score.bias", name)
        mask = MaskHeadOptions() if name.startswith("mask") else None
        num_classes = max(len(biases) - 1, 1)  # the background has a bias too
        return Detector(zoo.get("resnet50"), DetectorOptions(num_classes, mask=mask))
    arch = zoo.get(name)
    biases = _tensor(state, f"{NAMINGS[arch.traits.design].head}.bias", name)
    return Classifier(arch, ClassifierOptions(max(len(biases), 1)))


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


def _group_norm_leaves(layer, state, epsilon):
    """Yield (collection, leaf, torchvision's name, value) for a group normalisation."""
    del epsilon
    for leaf, name in (("scale", "weight"), ("bias", "bias")):
        key = f"{layer.prefix}.{name}"
        yield "params", leaf, key, _tensor(state, key, layer.prefix)


# By kind of layer; others have a kernel.
_LEAVES = {"norm": _norm_leaves, "group_norm": _group_norm_leaves}


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
