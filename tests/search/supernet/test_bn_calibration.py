"""Statistics over several mini-batches against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.evaluation.bn_statistics import merge


@pytest.mark.parametrize("mean", [0.0, 3.0, 1000.0, -1e4])
def test_moments_are_pooled_without_cancellation(mean):
    """Sums of squares in float32 lose 2 % of the variance at a mean of 1,000 deviations."""
    rng = np.random.default_rng(0)
    batches = [mean + rng.standard_normal((images, 50, 3)) for images in (8, 8, 3, 8, 8, 1)]
    pooled, num_images = None, 0
    for batch in batches:
        flat = batch.reshape(-1, 3)
        moments = {"mean": jnp.float32(flat.mean(0)), "var": jnp.float32(flat.var(0))}
        tree = {"layer": {"bn1": moments}}
        pooled = tree if pooled is None else merge(pooled, num_images, tree, len(batch))
        num_images += len(batch)
    every = np.concatenate(batches).reshape(-1, 3)
    stats = pooled["layer"]["bn1"]
    # The means in float32 have that relative error, which the differences of means inherit.
    rounding = 4 * np.finfo(np.float32).eps
    np.testing.assert_allclose(stats["mean"], every.mean(0), rtol=rounding, atol=rounding)
    error = rounding * max(abs(mean), 1)
    np.testing.assert_allclose(stats["var"], every.var(0), rtol=len(batches) * rounding + error)
