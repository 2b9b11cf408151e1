"""A large supernet's state is split over devices, and its step needs no more memory for that."""

import json

import jax
import numpy as np
import pytest
from helpers import fixed_proposals, largest_difference, tiny_options

from crnas_jax.data.classification import SyntheticClassification
from crnas_jax.data.transforms import ClassificationRows
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.runtime import interruption
from crnas_jax.spaces.stages import PAPER_GRIDS
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

pytestmark = [pytest.mark.campaign, pytest.mark.programs]

DEPTHS = (3, 4, 6, 3)
SMALL = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1,), (1, 2), (1,), (1,)))


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


def test_a_state_that_is_split_goes_on_whole_and_on_other_devices(tmp_path, monkeypatch):
    """On one device, on eight in groups of four, on one again: as on one alone."""
    model = Classifier(SMALL, ClassifierOptions(9))
    source, rows = SyntheticClassification(16, 32), ClassificationRows(32, augment=False)
    optimizer = OptimizerOptions(schedule="cosine", warmup_steps=2)

    def run(name, num_devices, fsdp, num_steps):
        options = TrainOptions(3, 8, optimizer, log_every=1, num_devices=num_devices, fsdp=fsdp)
        answers = iter([False] * (num_steps - 1) + [True])
        monkeypatch.setattr(interruption, "requested", lambda: next(answers, False))
        job = TrainingJob("classifier", model, source, rows, options)
        return jax.device_get(train(job, tmp_path / name))

    for num_devices, fsdp in ((1, 1), (8, 4)):
        with pytest.raises(interruption.Stopped):
            run("parts", num_devices, fsdp, 2)
    parts, whole = run("parts", 1, 1, 2), run("whole", 1, 1, 6)
    assert largest_difference(parts, whole) < 1e-5
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("parts", "whole")]
    losses = [[json.loads(line)["loss"] for line in log.splitlines()] for log in logs]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    trainer = Trainer(model, make_optimizer(optimizer, 8, 6), make_mesh(8, 8, fsdp=4), 0)
    specs = {leaf.sharding.spec for leaf in jax.tree.leaves(trainer.shapes["opt_state"])}
    assert len(specs) > 1
