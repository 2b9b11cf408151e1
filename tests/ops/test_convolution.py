"""The convolution's CPU forms against the compiler's, and the switched one against its parts.

They are compared in float64, where the order of sums does not matter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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


def compiler_conv(x, kernel, spec):
    pad = spec.dilation * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(spec.stride, spec.stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(spec.dilation, spec.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )


def assert_equal(actual, expected):
    for actual_part, expected_part in zip(actual, expected, strict=True):
        assert actual_part.dtype == expected_part.dtype == np.float64
        np.testing.assert_allclose(actual_part, expected_part, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("in_control_flow", [False, True])
@pytest.mark.parametrize(("shape", "spec"), CASES)
def test_values_and_gradients_equal_those_of_the_compiler(shape, spec, in_control_flow):
    spec = dataclasses.replace(spec, in_control_flow=in_control_flow)
    rng = np.random.default_rng(0)
    size, channels, features = shape
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((2, 11, 14, channels)))
        kernel = jnp.asarray(rng.standard_normal((size, size, channels // spec.groups, features)))

        def value_and_gradients(function):
            y, back = jax.vjp(lambda x, kernel: function(x, kernel, spec), x, kernel)
            return y, *back(jnp.cos(y))

        assert_equal(
            jax.jit(lambda: value_and_gradients(convolution.conv))(),
            jax.jit(lambda: value_and_gradients(compiler_conv))(),
        )


def test_the_switched_convolution_equals_the_one_it_picks():
    rng = np.random.default_rng(1)
    specs = tuple(ConvSpec(dilation=dilation, in_control_flow=True) for dilation in (1, 2, 3))
    with jax.enable_x64(True):
        x = jnp.asarray(rng.standard_normal((1, 9, 9, 4)))
        kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 4)))

        @jax.jit
        def switched(operation):
            y, back = jax.vjp(
                lambda x, k: convolution.switched_conv(x, k, operation, specs), x, kernel
            )
            return y, *back(y)

        for operation, spec in enumerate(specs):
            y, back = jax.vjp(lambda x, k, spec=spec: convolution.conv(x, k, spec), x, kernel)
            assert_equal(switched(jnp.int32(operation)), (y, *back(y)))
