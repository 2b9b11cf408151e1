"""Estimates of memory, and how many subnets run at once in what there is."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from crnas_jax.parallel.mesh import make_mesh
from crnas_jax.search.supernet import memory


def test_the_size_of_a_call_follows_the_memory():
    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 200}

    assert [memory.fitting(Accelerator(), each) for each in (10, 100, 10**6)] == [32, 3, 1]
    assert memory.fitting(jax.devices("cpu")[0], 10) == 1


def test_memory_of_a_mesh_is_that_of_all_its_devices():
    def double(x):
        return jnp.sin(x) * 2 + x

    x, mesh = np.zeros((8, 1000), np.float32), make_mesh(8, 8)
    mapped = jax.shard_map(double, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    peak = memory.peak_bytes(double, x)
    assert peak <= memory.peak_bytes(mapped, x) <= 2 * peak


def test_peak_memory_of_a_function():
    def function(x):
        y = x + 1  # 4 kB that stay to the end
        return (jax.lax.scan(lambda carry, _: (carry * 2, None), y, None, 3)[0] + y).sum()

    peak = memory.peak_bytes(function, np.zeros(1000, np.float32))
    assert 8_000 <= peak <= 16_000
