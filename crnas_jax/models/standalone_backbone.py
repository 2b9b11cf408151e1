"""Backbone of an export, for programs without crnas_jax: needs jax and flax alone.

    import json, pathlib
    from backbone import Backbone

    module = Backbone.from_json(pathlib.Path("arch.json").read_text())
    c2, c3, c4, c5 = module.apply(variables, images)

What the network is made of is read from `arch.json` as data. `variables` are {"params",
"batch_stats"} of the backbone. Images are float [batch, height, width, 3], RGB, normalised as
`arch.json` says under `input`, with heights and widths that its `multiple` divides. This file is
the same in every export.
"""

import json
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

_ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "none": lambda x: x}


def _hashable(value):
    """Return JSON's lists and objects as values that a static argument of `jax.jit` may hold."""
    if isinstance(value, dict):
        return FrozenDict({name: _hashable(entry) for name, entry in value.items()})
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _conv_bn(x, conv, train, epsilon):
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
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        dtype=x.dtype,
        use_fast_variance=False,
        name=conv["norm"],
    )(x)
    return _ACTIVATIONS[conv["activation"]](x)


def _unit(x, unit, train, epsilon):
    """Apply a block, or a layer of stem or tail, in the calling module."""
    y = x
    for conv in unit["convolutions"]:
        y = _conv_bn(y, conv, train, epsilon)
    if unit["shortcut"] == "identity":
        y = y + x
    elif unit["shortcut"] is not None:
        y = y + _conv_bn(x, unit["shortcut"], train, epsilon)
    y = _ACTIVATIONS[unit["activation"]](y)
    if unit["pool_stride"] > 1:
        stride = unit["pool_stride"]
        y = nn.max_pool(y, (3, 3), (stride, stride), ((1, 1), (1, 1)))
    return y


class _Block(nn.Module):
    unit: Any
    epsilon: float

    @nn.compact
    def __call__(self, x, train):
        return _unit(x, self.unit, train, self.epsilon)


class _Part(nn.Module):
    units: Any
    epsilon: float

    @nn.compact
    def __call__(self, x, train):
        for unit in self.units:
            if unit["name"] is None:
                x = _unit(x, unit, train, self.epsilon)
            else:
                x = _Block(unit, self.epsilon, name=unit["name"])(x, train)
        return x


class Backbone(nn.Module):
    """A backbone as its description says.

    Attributes:
      parts: stem, stages and tail, `backbone.parts` of `arch.json`.
      epsilon: added to the variance in batch normalisation.
    """

    parts: Any
    epsilon: float = 1e-5

    @classmethod
    def from_json(cls, text: str) -> "Backbone":
        """Make the module that the text of an `arch.json` describes."""
        description = json.loads(text)["backbone"]
        return cls(_hashable(description["parts"]), description["epsilon"])

    @nn.compact
    def __call__(self, images, train: bool = False):
        """Return the features c2..c5 (strides 4 to 32).

        Args:
          images: normalised images, float [batch, height, width, 3].
          train: whether batch normalisation uses the mini-batch's statistics, and moves the stored
            ones (`mutable=["batch_stats"]`).
        """
        x, features = images, []
        for part in self.parts:
            x = _Part(part["units"], self.epsilon, name=part["name"])(x, train)
            if part["level"] is not None:
                features.append(x)
        return tuple(features)
