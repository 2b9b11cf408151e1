"""The convolution's CPU forms against the compiler's, and batch normalisation against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.models import layers
from crnas_jax.models.layers import BatchNorm, BNMode, ConvSpec
from crnas_jax.training.mesh import make_mesh

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

    def both(convolution):
        y, back = jax.vjp(lambda x, kernel: convolution(x, kernel, spec), x, kernel)
        return y, *back(jnp.cos(y))

    ours = jax.jit(lambda: both(layers.conv))()
    compiler = jax.jit(lambda: both(layers._compiler_conv))()
    for one, other in zip(ours, compiler, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_switched_convolution_runs_the_picked_one():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 9, 9, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 4)), jnp.float32)
    specs = tuple(ConvSpec(dilation=dilation, in_control_flow=True) for dilation in (1, 2, 3))

    @jax.jit
    def switched(operation):
        y, back = jax.vjp(lambda x, k: layers.switched_conv(x, k, operation, specs), x, kernel)
        return y, *back(y)

    for operation, spec in enumerate(specs):
        y, back = jax.vjp(lambda x, k, spec=spec: layers.conv(x, k, spec), x, kernel)
        for one, other in zip(switched(jnp.int32(operation)), (y, *back(y)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def _batch_norm(x, weight, mode, mean, var):
    variables = {
        "params": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 0.5)},
        "batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(var)},
    }
    return BatchNorm().apply(variables, x, mode, weight, mutable=["batch_stats"])


@pytest.mark.parametrize("devices", [1, 8])
def test_batch_statistics_are_global_and_leave_padding_out(devices):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 4, 5, 3)).astype(np.float32) * 3 + 1
    weight = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
    mean, var = np.array([0.1, 0.2, 0.3], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    used = x[weight > 0]
    expected_mean, expected_var = used.mean((0, 1, 2)), used.var((0, 1, 2))
    mesh = make_mesh(8, devices)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda x, w: _batch_norm(x, w, layers.BN_TRAIN, mean, var))
    y, updated = run(jax.device_put(x, sharding), jax.device_put(weight, sharding))
    np.testing.assert_allclose(
        y, (x - expected_mean) / np.sqrt(expected_var + 1e-5) * 2 + 0.5, rtol=1e-4, atol=1e-4
    )
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * expected_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * expected_var, rtol=1e-5)


def test_running_statistics_are_used_and_kept():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    y, updated = _batch_norm(
        x, np.ones(1, np.float32), BNMode(False, None), [1.0, 2.0, 3.0], [4.0, 4.0, 4.0]
    )
    np.testing.assert_allclose(
        y, (x - np.array([1, 2, 3])) / np.sqrt(4 + 1e-5) * 2 + 0.5, rtol=1e-5
    )
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], [1.0, 2.0, 3.0])
