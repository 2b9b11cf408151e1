"""Stochastic depth and DropBlock for fixed masks, against literal numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crnas_jax.models.layers import BN_TRAIN, LayerOptions, Normalization
from crnas_jax.ops import drop


def test_a_dropped_branch_is_zero_and_a_kept_one_is_divided_by_its_share():
    branch = jnp.array([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    kept = jnp.array([True, False, True])
    value, gradient = jax.value_and_grad(lambda x: drop.drop_path(x, kept, 0.25).sum())(branch)
    assert value == pytest.approx(4 / 0.75)
    np.testing.assert_allclose(gradient.ravel(), [4 / 3, 0, 4 / 3], rtol=1e-6)


def test_the_rate_of_corners_drops_the_share():
    """Of 80 cells 48 can be corners of blocks of 9."""
    rate = drop.drop_block_rate(jnp.array([0.1, 0.0]), (10, 8), (3, 3))
    np.testing.assert_allclose(rate, [0.1 * 80 / (9 * 48), 0], rtol=1e-6)


def test_dropped_blocks_begin_at_their_corners():
    """In a 4 x 5 map of two channels, blocks of 2 x 2 cells: 8 of 40 cells are dropped."""
    corners = np.zeros((1, 3, 4, 2), bool)
    corners[0, 1, 2, 0] = corners[0, 0, 0, 1] = True
    kept = np.ones((4, 5, 2))
    kept[1:3, 2:4, 0] = kept[:2, :2, 1] = 0
    x = np.arange(40, dtype=np.float32).reshape(1, 4, 5, 2)
    value, gradient = jax.vjp(lambda x: drop.drop_block(x, jnp.asarray(corners)), jnp.asarray(x))
    np.testing.assert_allclose(value[0], x[0] * kept * 40 / 32, rtol=1e-6)
    np.testing.assert_allclose(gradient(jnp.ones_like(x))[0][0], kept * 40 / 32, rtol=1e-6)


def _normalization(num_images, progress, **options):
    keys = jax.random.split(jax.random.key(3), num_images)
    layers = LayerOptions("relu", **options)
    weight = jnp.ones(num_images)
    return Normalization(BN_TRAIN, weight, layers, keys, jnp.full(num_images, progress))


def test_rates_follow_depth_and_progress():
    norm = _normalization(4000, 0.5, stochastic_depth=0.4, drop_block=0.2, drop_block_size=3)
    x = jnp.ones((4000, 9, 9, 1))
    lost = (norm.drop_path(x[:, :1, :1], 0.5) == 0).mean()
    assert lost == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 4000))
    assert norm.drop_path(x, 0.0) is x
    dropped = (norm.drop_block(x, 4) == 0).mean((1, 2, 3))
    # Half of the way: a tenth; a little less, since blocks overlap.
    assert 0.08 < dropped.mean() < 0.1
    np.testing.assert_allclose(norm.drop_block(x, 5).mean((1, 2, 3)), 1, rtol=1e-4)
    assert norm.drop_block(x, 3) is x
    small = norm.drop_block(jnp.ones((4000, 2, 1, 1)), 5)  # no larger than the block
    assert np.isfinite(small).all()


def test_draws_depend_on_the_image_and_the_place_alone():
    norm = _normalization(4, 1.0, drop_block=0.3, drop_block_size=2)
    x = jnp.ones((4, 8, 8, 3))
    whole = norm.at(3).drop_block(x, 4)
    turned = Normalization(
        norm.mode, norm.image_weight, norm.layers, norm.keys[::-1], norm.progress
    )
    np.testing.assert_array_equal(turned.at(3).drop_block(x, 4)[::-1], whole)
    assert (norm.at(4).drop_block(x, 4) != whole).any()
