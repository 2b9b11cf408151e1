"""Scale-permuted backbones against an independent restatement in PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spinenet_reference
import torch

from crnas_jax.arch import zoo
from crnas_jax.models.backbones.alone import Backbone
from crnas_jax.models.layers import LayerOptions

NETWORKS = {"spinenet49": "relu", "spinenet49_mobile": "swish", "r0_sp53": "relu"}


def _narrow(name, **changes):
    arch = zoo.get(name)
    return dataclasses.replace(arch, width_scale=0.25, endpoint_channels=8, **changes)


def _reference(name, arch, variables, images, dtype, activation):
    features = spinenet_reference.features(
        name,
        variables,
        images,
        width_scale=arch.width_scale,
        alpha=arch.alpha,
        repeats=arch.repeats,
        endpoint_channels=arch.endpoint_channels,
        activation=activation,
        dtype=dtype,
        dilations=arch.dilations,
    )
    return [features[level] for level in arch.levels]


@pytest.mark.parametrize(
    ("name", "size", "repeats", "activation", "dilations"),
    [
        ("spinenet49", (96, 160), 2, "relu", (1, 2, 3) * 5),
        ("spinenet49", (224, 224), 1, "swish", ()),
        ("spinenet49_mobile", (224, 224), 1, "swish", (3, 2, 1, 2) * 4),
        ("r0_sp53", (200, 250), 1, "relu", ()),
    ],
)
def test_features_equal_an_independent_restatement(name, size, repeats, activation, dilations):
    arch = _narrow(name, repeats=repeats, dilations=dilations)
    rng = np.random.default_rng(0)
    shapes = spinenet_reference.shapes(name, 0.25, arch.alpha, repeats, 8)
    variables = spinenet_reference.draw(shapes, rng)
    images = rng.standard_normal((2, *size, 3)).astype(np.float32)
    module = Backbone(arch, layers=LayerOptions(activation))
    ours = jax.jit(module.apply)(jax.device_put(variables), jnp.asarray(images))
    exact, other = (
        _reference(name, arch, variables, images.astype(precision), dtype, activation)
        for precision, dtype in ((np.float64, torch.float64), (np.float32, torch.float32))
    )
    for level, feature, expected, rounded in zip(arch.levels, ours, exact, other, strict=True):
        assert feature.shape[1:3] == tuple(-(-side // 2**level) for side in size)
        scale = abs(expected).max()
        error, other_error = (abs(values - expected).max() / scale for values in (feature, rounded))
        assert error < max(8 * other_error, 1e-5)
