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


def one_output(*intermediates) -> ScalePermuted:
    """Return a network of (level, kind, parents) before p3, which reads the last two of them.

    It is as small as can be: every block and every pair of a block and its parent is compiled.
    """
    blocks = [PermutedBlock(*row) for row in intermediates]
    last = len(blocks) + 1
    blocks.append(PermutedBlock(3, "bottleneck", (last - 1, last), is_output=True))
    stem = (StemBlock(2), StemBlock(2))
    return ScalePermuted("spinenet", stem, tuple(blocks), width_scale=1 / 16, endpoint_channels=16)


@functools.cache
def _step(spec):
    """Return a jitted function to (features, {new statistics, gradient}) in training.

    Of a supernet they stand in its banks.
    """
    detector, batch = Detector(spec, RETINA), jax.tree.map(jnp.asarray, tiny_batch())

    def step(variables, choice):
        def loss(params):
            features, updated = detector.module.apply(
                {"params": params, "batch_stats": path["batch_stats"]},
                batch["image"] / 255,
                choice,
                Normalization(BN_TRAIN, batch["weight"]),
                method=lambda module, *arguments: module.backbone(*arguments),
                mutable=["batch_stats"],
            )
            total = sum(jnp.sin(feature).mean() for feature in features)
            return total, (features, updated["batch_stats"])

        path = detector.path(variables, choice)
        (_, (features, stats)), gradient = jax.value_and_grad(loss, has_aux=True)(path["params"])
        back = {
            name: banks.scatter(variables[name], detector.rows(variables[name], choice), tree)
            for name, tree in (("batch_stats", stats), ("params", gradient))
        }
        return features, back

    return jax.jit(step)


def check_path_equals_network(spec, choice, network: ScalePermuted) -> None:
    """Compare features, new statistics and gradients of a path with the stand-alone network's.

    The supernet is compiled once for all its paths, and other rows of its banks stay as they are.
    """
    detector = Detector(spec, RETINA)
    variables = randomised(fresh_variables(detector))
    run = _step(spec)
    features, back = jax.device_get(run(jax.device_put(variables), choice))
    assert run._cache_size() == 1
    for name, tree in back.items():
        _rows_moved(detector.rows(tree, choice), variables[name], tree)
    alone = jax.device_get(detector.extract(variables, choice))
    expected = jax.device_get(_step(network)(jax.device_put(alone), None))
    got = (features, jax.device_get(detector.extract(back, choice)))
    for tree, expected_tree in zip(got, expected, strict=True):
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
    variables = fresh_variables(detector)
    state = {**variables, "opt_state": optimizer.init(variables["params"]), "step": np.int32(0)}
    state = jax.device_put(state, trainer._programs.shardings)
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
    return _rows_moved(where, before, jax.device_get(state))


def _rows_moved(where, before, after):
    """Check that rows of no path are the same; count banks in which others moved, and with such."""
    num_moved = num_still = 0
    for index, old, new in zip(*map(jax.tree.leaves, (where, before, after)), strict=True):
        if np.ndim(index) == 0:
            continue
        sampled = np.isin(np.arange(len(old)), np.asarray(index))
        np.testing.assert_array_equal(new[~sampled], old[~sampled])
        num_moved += int((new[sampled] != old[sampled]).any())
        num_still += int((~sampled).any())
    return num_moved, num_still
