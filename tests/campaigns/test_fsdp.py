"""A large supernet's state is split over devices, and its step needs no more memory for that."""

import jax
import numpy as np
import pytest
from helpers import fixed_proposals, tiny_options

from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.spaces.stages import PAPER_GRIDS
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

pytestmark = pytest.mark.campaign

DEPTHS = (3, 4, 6, 3)


def _trainer(kind, options, widths, fsdp):
    """Return a model of ResNet-50's stage supernet, own weights for each depth; eight images."""
    spec = SupernetSpec("resnet_bottleneck", widths, PAPER_GRIDS)
    optimizer = make_optimizer(OptimizerOptions(), 8, 1000)
    mesh = make_mesh(8, 8, fsdp=fsdp)
    trainer = Trainer(kind(spec, options), optimizer, mesh, 0)
    return trainer, put_parts(mesh, fixed_proposals(8), 1), spec.choice(DEPTHS)


def _bytes(tree, on_device=False):
    """Count the bytes of a tree of shapes: in all, or on each device."""
    return sum(
        leaf.dtype.itemsize
        * np.prod(leaf.sharding.shard_shape(leaf.shape) if on_device else leaf.shape)
        for leaf in jax.tree.leaves(tree)
    )


def test_state_and_temporaries_of_the_papers_supernet():
    temporaries = {}
    for fsdp in (1, 8):
        trainer, parts, choice = _trainer(Detector, tiny_options(), (32, 64, 128, 256), fsdp)
        for name in ("params", "opt_state"):
            state = trainer.shapes[name]
            assert _bytes(state) > 5e8
            assert _bytes(state, on_device=True) <= 1.15 * _bytes(state) / fsdp
        temporaries[fsdp] = sum(
            program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
            for program, arguments in trainer.programs(parts[0], choice)
        )
    print(f"\ntemporaries {temporaries[8] / temporaries[1]:.2f} of those without fsdp")
    assert temporaries[8] <= 1.1 * temporaries[1]


def test_steps_are_those_of_a_whole_state():
    """The same grids at an eighth of the width, as a classifier: nothing is drawn."""
    losses = []
    for fsdp in (1, 8):
        trainer, parts, choice = _trainer(Classifier, ClassifierOptions(3), (8, 16, 32, 64), fsdp)
        state, run = trainer.init(), []
        for _ in range(3):
            state, metrics = trainer.step(state, parts, choice)
            run.append(float(metrics["loss"]))
        losses.append(run)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
