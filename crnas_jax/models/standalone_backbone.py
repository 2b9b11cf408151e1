"""Backbone of an export, for programs without crnas_jax: needs jax and flax alone.

    import json, pathlib
    from backbone import Backbone

    module = Backbone.from_json(pathlib.Path("arch.json").read_text())
    features = module.apply(variables, images)    # a tuple, finest level first

What the network is made of is read from `arch.json` as data. `variables` are {"params",
"batch_stats"} of the backbone. Images are float [batch, height, width, 3], RGB, normalised as
`arch.json` says under `input`, with heights and widths that its `multiple` divides. This file is
the same in every export.
"""

import json
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict

_ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "swish": nn.swish, "none": lambda x: x}


def _hashable(value):
    """Return JSON's lists and objects as values that a static argument of `jax.jit` may hold."""
    if isinstance(value, dict):
        return FrozenDict({name: _hashable(entry) for name, entry in value.items()})
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _conv_bn(x, conv, norm):
    """Apply a convolution, its batch normalisation and its activation, in the calling module."""
    size, dilation = conv["size"], conv["dilation"]
    padding = dilation * (size // 2)
    x = nn.Conv(
        conv["channels"],
        (size, size),
        strides=conv["stride"],
        padding=((padding, padding), (padding, padding)),
        kernel_dilation=dilation,
        feature_group_count=conv["groups"],
        use_bias=False,
        dtype=x.dtype,
        name=conv["conv"],
    )(x)
    x = nn.BatchNorm(
        use_running_average=not norm["train"],
        momentum=norm["momentum"],
        epsilon=norm["epsilon"],
        dtype=x.dtype,
        use_fast_variance=False,
        name=conv["norm"],
    )(x)
    return _ACTIVATIONS[conv["activation"]](x)


def _unit(x, unit, norm):
    """Apply a block, or a layer of stem or tail, in the calling module."""
    y = x
    *first, last = unit["convolutions"]
    for conv in first:
        y = _conv_bn(y, conv, norm)
    if unit["squeeze"]:
        gate = nn.Dense(unit["squeeze"], dtype=y.dtype, name="squeeze")(y.mean((1, 2)))
        gate = _ACTIVATIONS[unit["inner_activation"]](gate)
        gate = nn.sigmoid(nn.Dense(y.shape[-1], dtype=y.dtype, name="excite")(gate))
        y = y * gate[:, None, None]
    y = _conv_bn(y, last, norm)
    if unit["shortcut"] == "identity":
        y = y + x
    elif unit["shortcut"] is not None:
        y = y + _conv_bn(x, unit["shortcut"], norm)
    y = _ACTIVATIONS[unit["activation"]](y)
    if unit["pool_stride"] > 1:
        stride = unit["pool_stride"]
        y = nn.max_pool(y, (3, 3), (stride, stride), ((1, 1), (1, 1)))
    return y


class _Block(nn.Module):
    unit: Any

    @nn.compact
    def __call__(self, x, norm):
        return _unit(x, self.unit, norm)


class _Part(nn.Module):
    units: Any

    @nn.compact
    def __call__(self, x, norm):
        for unit in self.units:
            if unit["name"] is None:
                x = _unit(x, unit, norm)
            else:
                x = _Block(unit, name=unit["name"])(x, norm)
        return x


class _Layer(nn.Module):
    layer: Any

    @nn.compact
    def __call__(self, x, norm):
        return _conv_bn(x, self.layer, norm)


class _Resample(nn.Module):
    """Bring a parent to the size and channels of a block."""

    layers: Any
    size: Any

    @nn.compact
    def __call__(self, x, norm):
        parent_size = x.shape[1:3]
        *first, last = self.layers
        for layer in first:
            x = _conv_bn(x, layer, norm)
        window, strides = [1, 1], [1, 1]
        for axis in (0, 1):
            parent, side = parent_size[axis], self.size[axis]
            ratio = parent / side
            if math.floor(ratio) > 2 and x.shape[1 + axis] > side:
                window[axis] = 3 if ratio <= 4 else 5
                strides[axis] = math.floor(ratio) // 2 if parent % side == 0 else 2
        if window != [1, 1]:
            x = nn.max_pool(x, tuple(window), tuple(strides), "SAME")
        for axis in (0, 1):
            cells, side = x.shape[1 + axis], self.size[axis]
            if cells != side:  # the nearest cell
                x = jnp.take(x, jnp.arange(side) * cells // side, axis=1 + axis)
        return _conv_bn(x, last, norm)


class _ScaleBlock(nn.Module):
    block: Any
    size: Any
    activation: str

    @nn.compact
    def __call__(self, x, outputs, norm):
        if self.block["parents"]:
            merged = [outputs[extra] for extra in self.block["extras"]]
            for parent in self.block["parents"]:
                resample = _Resample(parent["layers"], self.size, name=parent["name"])
                merged.append(resample(outputs[parent["block"]], norm))
            x = _ACTIVATIONS[self.activation](sum(merged))
        for unit in self.block["units"]:
            x = _Block(unit, name=unit["name"])(x, norm)
        return x


class Backbone(nn.Module):
    """A backbone as its description says: stages, or scale-permuted blocks (arXiv 1912.05027).

    Attributes:
      description: `backbone` of `arch.json`.
    """

    description: Any

    @classmethod
    def from_json(cls, text: str) -> "Backbone":
        """Make the module that the text of an `arch.json` describes."""
        return cls(_hashable(json.loads(text)["backbone"]))

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Return the features, finest first: c2..c5 (strides 4 to 32) or p3..p7 (8 to 128).

        Args:
          images: normalised images, float [batch, height, width, 3].
          train: whether batch normalisation uses the mini-batch's statistics, and moves the stored
            ones (`mutable=["batch_stats"]`).
        """
        description = self.description
        norm = {name: description[name] for name in ("epsilon", "momentum")} | {"train": train}
        if "blocks" in description:
            return self._scale_permuted(images, norm)
        x, features = images, []
        for part in description["parts"]:
            x = _Part(part["units"], name=part["name"])(x, norm)
            if part["level"] is not None:
                features.append(x)
        return tuple(features)

    def _scale_permuted(self, images, norm):
        description, outputs = self.description, []
        x = _Block(description["stem"], name="stem")(images, norm)
        for block in description["blocks"]:
            size = tuple(-(-side // 2 ** block["level"]) for side in images.shape[1:3])
            module = _ScaleBlock(block, size, description["activation"], name=block["name"])
            x = module(x, outputs, norm)
            outputs.append(x)
        return tuple(
            _Layer(endpoint["layer"], name=endpoint["name"])(outputs[endpoint["block"]], norm)
            for endpoint in description["endpoints"]
        )
