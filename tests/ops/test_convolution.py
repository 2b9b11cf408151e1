"""The convolution's CPU forms against the compiler's, and the switched one against the picked."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.ops import convolution
from crnas_jax.ops.convolution import ConvSpec

CASES = [
    ((7, 3, 8), ConvSpec(stride=2)),
    ((1, 8, 16), ConvSpec()),
    ((1, 8, 16), ConvSpec(stride=2)),
    ((3, 8, 4), ConvSpec()),
    ((3, 8, 4), ConvSpec(stride=2)),
    ((3, 8, 4), ConvSpec(dilation=2)),
    ((3, 8, 4), ConvSpec(dilation=3)),
    ((3, 8, 8), ConvSpec(groups=8)),
    ((3, 8, 8), ConvSpec(stride=2, dilation=2, groups=8)),
    ((3, 8, 16), ConvSpec(groups=4)),
    ((3, 8, 16), ConvSpec(stride=2, dilation=3, groups=4)),
]


@pytest.mark.parametrize("in_control_flow", [False, True])
@pytest.mark.parametrize(("shape", "spec"), CASES)
def test_both_forms_have_equal_values_and_gradients(shape, spec, in_control_flow):
    spec = dataclasses.replace(spec, in_control_flow=in_control_flow)
    rng = np.random.default_rng(0)
    size, channels, features = shape
    x = jnp.asarray(rng.standard_normal((2, 11, 14, channels)), jnp.float32)
    kernel = jnp.asarray(
        rng.standard_normal((size, size, channels // spec.groups, features)), jnp.float32
    )

    def both(function):
        y, back = jax.vjp(lambda x, kernel: function(x, kernel, spec), x, kernel)
        return y, *back(jnp.cos(y))

    ours = jax.jit(lambda: both(convolution.conv))()
    compiler = jax.jit(lambda: both(convolution._compiler_conv))()
    for one, other in zip(ours, compiler, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_switched_convolution_runs_the_picked_one():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 9, 9, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 4)), jnp.float32)
    specs = tuple(ConvSpec(dilation=dilation, in_control_flow=True) for dilation in (1, 2, 3))

    @jax.jit
    def switched(operation):
        y, back = jax.vjp(lambda x, k: convolution.switched_conv(x, k, operation, specs), x, kernel)
        return y, *back(y)

    for operation, spec in enumerate(specs):
        y, back = jax.vjp(lambda x, k, spec=spec: convolution.conv(x, k, spec), x, kernel)
        for one, other in zip(switched(jnp.int32(operation)), (y, *back(y)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
