"""What every supernet of a scale-permuted network must hold, whatever is searched in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import fresh_variables, largest_difference, randomised, tiny_batch

from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted, StemBlock
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import BN_TRAIN, Normalization
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet import banks
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

RETINA = RetinaNetOptions(3, 16, RetinaHeadOptions("spinenet", 1))


def two_outputs(*intermediates) -> ScalePermuted:
    """Return a network of (level, kind, parents) before the outputs p3 and p4, as narrow as can be.

    Outputs read the last two blocks before them.
    """
    blocks = [PermutedBlock(*row) for row in intermediates]
    for level in (3, 4):
        last = len(blocks) + 1
        blocks.append(PermutedBlock(level, "bottleneck", (last - 1, last), is_output=True))
    stem = (StemBlock(2), StemBlock(2))
    return ScalePermuted("spinenet", stem, tuple(blocks), width_scale=1 / 16, endpoint_channels=16)


@functools.cache
def _step(spec):
    """Return a jitted function to (features, new statistics, gradient) in training."""
    detector, batch = Detector(spec, RETINA), tiny_batch()

    def step(variables, choice):
        def loss(params):
            norm = Normalization(BN_TRAIN, jnp.asarray(batch["weight"]))
            features, updated = detector.module.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                jnp.asarray(batch["image"]) / 255,
                choice,
                norm,
                method=lambda module, *arguments: module.backbone(*arguments),
                mutable=["batch_stats"],
            )
            total = sum(jnp.sin(feature).mean() for feature in features)
            return total, (features, updated["batch_stats"])

        (_, (features, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        return features, stats, gradient

    return jax.jit(step)


def check_path_equals_network(spec, choice, network: ScalePermuted) -> None:
    """Compare features, new statistics and gradients of a path with the stand-alone network's.

    The supernet is compiled once for all its paths.
    """
    detector = Detector(spec, RETINA)
    variables = jax.device_put(randomised(fresh_variables(detector)))
    features, stats, gradient = _step(spec)(detector.path(variables, choice), choice)
    assert _step(spec)._cache_size() == 1
    back = {
        name: banks.scatter(variables[name], detector.rows(variables[name], choice), tree)
        for name, tree in (("batch_stats", stats), ("params", gradient))
    }
    back = detector.extract(back, choice)
    alone = detector.extract(variables, choice)
    expected = _step(network)(alone, None)
    for tree, expected_tree in zip(
        (features, back["batch_stats"], back["params"]), expected, strict=True
    ):
        scale = max(1.0, *(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected_tree)))
        assert largest_difference(tree, expected_tree) <= 1e-5 * scale


def check_only_the_path_moves(spec, choice, caplog) -> tuple[int, int]:
    """Check parameters, momentum and statistics over a step with weight decay after two others.

    Nor does the step compile anything.

    Returns:
      The number of banks in which something moved, and of those with rows that did not.
    """
    detector, mesh = Detector(spec, RETINA), make_mesh(2, 1)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1), 2, 10)
    trainer = Trainer(detector, optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(), "image_id": np.arange(2)})
    state = trainer.init()
    for step in range(2):
        state, _ = trainer.step(state, [batch], detector.sample(0, step))
    before = jax.device_get(state)
    caplog.clear()
    with jax.log_compiles():
        state, metrics = trainer.step(state, [batch], choice)
    assert "Compiling" not in caplog.text
    assert np.isfinite(metrics["loss"])
    where = {name: detector.rows(before[name], choice) for name in ("params", "batch_stats")}
    where["opt_state"] = optax.tree_map_params(
        optimizer,
        lambda _, index: index,
        before["opt_state"],
        where["params"],
        transform_non_params=lambda _: banks.WHOLE,
    )
    where["step"] = banks.WHOLE
    num_moved = num_still = 0
    for index, old, new in zip(*map(jax.tree.leaves, (where, before, state)), strict=True):
        if np.ndim(index) == 0:
            continue
        index, new = np.asarray(index), np.asarray(new)
        sampled = np.isin(np.arange(len(old)), index)
        np.testing.assert_array_equal(new[~sampled], old[~sampled])
        num_moved += int((new[sampled] != old[sampled]).any())
        num_still += int((~sampled).any())
    return num_moved, num_still
