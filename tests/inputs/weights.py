"""Weights of others, for the command `convert` and for `init_from`."""

import functools
import pickle

import numpy as np
import safetensors.numpy
import torch
from inputs import making
from inputs.making import good
from interop.torchvision_reference import torchvision

from crnas_jax.checkpoint import save_variables

case = making.cases("weights", command="convert")


@functools.cache
def _state():
    """Return a state dict of a MobileNetV2 of ten classes, zeros and ones."""
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2(num_classes=10)
    return {
        name: np.full(tensor.shape, name.endswith("var"), np.float32)
        for name, tensor in model.state_dict().items()
    }


def _flags(folder, content, *more, model="mobilenet_v2"):
    folder.mkdir()
    file = folder / "weights.pth"
    if isinstance(content, dict):
        safetensors.numpy.save_file(content, file)
    else:
        file.write_bytes(content)
    return [f"--model={model}", f"--weights={file}", f"--output={folder / 'out'}", *more]


@case(
    "names with torch.compile's `_orig_mod.`",
    happens="taken off",
    says="tensors of",
    report="https://github.com/huggingface/pytorch-image-models/pull/2003",
)
def compiled(folder):
    return _flags(folder, {f"_orig_mod.{name}": value for name, value in _state().items()})


@case(
    "names with Lightning's `model.`",
    happens="taken off",
    says="tensors of",
    report="https://github.com/Lightning-AI/pytorch-lightning/issues/3302",
)
def lightning(folder):
    return _flags(folder, {f"model.{name}": value for name, value in _state().items()})


def _with_average():
    state = {f"model.{name}": value for name, value in _state().items()}
    return state | {f"model_ema.module.{name}": value for name, value in _state().items()}


@case(
    "weights and their average (EMA) in one file",
    refused="names: the network comes 2 times, under the prefixes ['model.', 'model_ema.module.']",
    report="https://github.com/sming256/OpenTAD/issues/44",
)
def average(folder):
    return _flags(folder, _with_average())


@case("the same with --prefix", happens="the one that is named", says="tensors of")
def prefix(folder):
    return _flags(folder, _with_average(), "--prefix=model_ema.module")


@case(
    "a detector without --epsilon",
    refused="--epsilon: missing, and nothing in the file tells; give 0 for torchvision's published",
    report="https://github.com/pytorch/vision/pull/2940",
)
def epsilon(folder):
    return _flags(folder, _state(), model="fasterrcnn_resnet50_fpn")


@case(
    "a pickle that runs a program",
    refused="weights.pth: content: ",
    report="https://github.com/bnnr-team/bnnr/issues/262",
)
def program(folder):
    class Program:
        def __reduce__(self):
            return print, ("it ran",)

    return _flags(folder, pickle.dumps(Program(), 2))


@case(
    "an HTML page named .pth",
    refused="weights.pth: content: it is neither a safetensors file nor one that torch.save wrote",
    report="https://github.com/ConstantinSeibold/ChestXRayAnatomySegmentation/issues/17",
)
def page(folder):
    return _flags(folder, b"<!DOCTYPE html><html>404</html>")


@case(
    "half a file",
    refused="weights.pth: content: it is damaged",
    report="https://github.com/jwohlwend/boltz/issues/664",
)
def half(folder):
    return _flags(folder, safetensors.numpy.save(_state())[:100_000])


@case("weights of another model", refused="resnet18: fc.bias: missing")
def other_model(folder):
    return _flags(folder, _state(), model="resnet18")


@case(
    "a folder that is there",
    refused="out: --output: it exists already; name a new folder",
    report="https://github.com/LibreYOLO/libreyolo/issues/833",
)
def existing(folder):
    flags = _flags(folder, _state())
    (folder / "out").mkdir()
    return flags


def _start(folder, *paths):
    return [f"--config.init_from.baseline={folder.joinpath(*paths)}"]


@case(
    "init_from: a folder that is not there",
    command="plan",
    refused="config.init_from.baseline: there are no weights",
)
def no_start(folder):
    good(folder)
    return _start(folder, "none")


@case(
    "init_from: weights without a backbone",
    command="plan",
    refused="config.init_from.baseline: holds no backbone in params and batch_stats",
)
def no_backbone(folder):
    good(folder)
    save_variables(folder / "weights", {"params": {"a": np.zeros(2)}})
    return _start(folder, "weights")
