"""Supernets of scale-permuted networks with everything that a training may ask for."""

import jax
import numpy as np
import pytest
from helpers import fixed_proposals
from supernet_checks import RETINA, one_output

from crnas_jax.models.backbones.staged import FreezeOptions
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import LayerOptions
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

pytestmark = [pytest.mark.campaign, pytest.mark.programs]

ARCH = one_output((4, "residual", (0, 1)), (2, "bottleneck", (1, 2)))
SPECS = {"operations": ScaleSupernetSpec(ARCH), "connections": ConnectionSupernetSpec(ARCH)}
DROPS = LayerOptions(stochastic_depth=0.2, drop_block=0.1, drop_block_size=3)


def _trainer(spec, num_devices=1, **options):
    optimizer = make_optimizer(OptimizerOptions(0.0005), 8, 10)
    detector = Detector(spec, RETINA, **options)
    return Trainer(detector, optimizer, make_mesh(8, num_devices), 0, ema_decay=0.9)


def _losses(trainer, num_parts=1):
    """Return the losses of three steps, and the state after them."""
    batch = {**fixed_proposals(), "progress": np.full(8, 0.5, np.float32)}
    parts = put_parts(trainer.mesh, batch, num_parts)
    state, losses = trainer.init(), []
    for step in range(3):
        state, metrics = trainer.step(state, parts, trainer.model.sample(0, step))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.parametrize("name", SPECS)
def test_precision_remat_and_devices_change_losses_by_less_than_2_per_cent(name):
    losses, _ = _losses(_trainer(SPECS[name]))
    for rtol, options in (
        (0.02, {"precision": "bfloat16"}),
        (1e-3, {"remat": True, "num_devices": 8}),
    ):
        np.testing.assert_allclose(_losses(_trainer(SPECS[name], **options))[0], losses, rtol=rtol)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_left_out_and_what_is_frozen(name):
    frozen = FreezeOptions(freeze_at=2, freeze_norm=True)
    trainer = _trainer(SPECS[name], layers=DROPS, freeze=frozen)
    start = jax.device_get(trainer.init())
    losses, state = _losses(trainer)
    assert np.isfinite(losses).all()
    num_moved = 0
    for collection in ("params", "batch_stats"):
        before = jax.tree_util.tree_leaves_with_path(start[collection]["backbone"])
        after = jax.tree.leaves(jax.device_get(state[collection]["backbone"]))
        for (path, old), new in zip(before, after, strict=True):
            names = [key.key for key in path]
            if names[0] in ("stem", "block0", "block1") or names[-2].startswith(("bn", "down")):
                np.testing.assert_array_equal(new, old)
            num_moved += int((new != old).any())
    assert num_moved > 0


@pytest.mark.parametrize("name", SPECS)
def test_steps_export_for_accelerators(name):
    trainer, platforms = _trainer(SPECS[name]), ("tpu", "cuda")
    (part,) = put_parts(trainer.mesh, fixed_proposals(), 1)
    for program, arguments in trainer.programs(part, trainer.model.sample(0, 0)):
        exported = jax.export.export(program, platforms=platforms)(*arguments)
        assert exported.platforms == platforms
