"""Batch normalisation against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.models import layers
from crnas_jax.models.layers import BatchNorm, BNMode, Normalization
from crnas_jax.parallel.mesh import make_mesh


def _batch_norm(x, weight, mode, mean, var):
    variables = {
        "params": {"scale": jnp.full(3, 2.0), "bias": jnp.full(3, 0.5)},
        "batch_stats": {"mean": jnp.asarray(mean), "var": jnp.asarray(var)},
    }
    norm = Normalization(mode, jnp.asarray(weight))
    return BatchNorm().apply(variables, jnp.asarray(x), norm, mutable=["batch_stats"])


@pytest.mark.parametrize("num_devices", [1, 8])
def test_batch_statistics_are_global_and_leave_padding_out(num_devices):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 4, 5, 3)).astype(np.float32) * 3 + 1
    weight = np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
    mean, var = np.array([0.1, 0.2, 0.3], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    counted = x[weight > 0]
    expected_mean, expected_var = counted.mean((0, 1, 2)), counted.var((0, 1, 2))
    mesh = make_mesh(8, num_devices)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(lambda x, w: _batch_norm(x, w, layers.BN_TRAIN, mean, var))
    y, updated = run(jax.device_put(x, sharding), jax.device_put(weight, sharding))
    np.testing.assert_allclose(
        y, (x - expected_mean) / np.sqrt(expected_var + 1e-5) * 2 + 0.5, rtol=1e-4, atol=1e-4
    )
    stats = updated["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * mean + 0.1 * expected_mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * var + 0.1 * expected_var, rtol=1e-5)


def test_stored_statistics_are_used_and_not_changed():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    y, updated = _batch_norm(
        x, np.ones(1, np.float32), BNMode(False, None), [1.0, 2.0, 3.0], [4.0, 4.0, 4.0]
    )
    np.testing.assert_allclose(
        y, (x - np.array([1, 2, 3])) / np.sqrt(4 + 1e-5) * 2 + 0.5, rtol=1e-5
    )
    np.testing.assert_array_equal(updated["batch_stats"]["mean"], [1.0, 2.0, 3.0])
