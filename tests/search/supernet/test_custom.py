"""The example of a network that is not ours, in our trainer and search."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, tiny_batch

from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.journal import Journal
from crnas_jax.search.supernet.custom import Foreign, affordable, choice_of
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

sys.path.insert(0, str(ROOT / "docs" / "examples"))
import foreign_detector


def test_the_example_finds_a_subnet_within_its_limit(tmp_path):
    code, score, number = foreign_detector.search(tmp_path, limit=1.0, epochs=4.0, images=64)
    assert number == 7  # nothing at all, or one of two operations at one of three blocks
    assert sum(operation != 0 for operation in code) <= 1
    assert score > 0
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 7
    again = foreign_detector.search(tmp_path, limit=1.0, epochs=4.0, images=64)
    assert again == (code, score, number)


def test_a_step_moves_what_it_ran_and_recompiles_nothing():
    """Not by weight decay nor by the momentum of earlier steps."""
    network = foreign_detector.TinyDetector(3)
    mesh = make_mesh(2, 1)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1, warmup_steps=1), 2, 100)
    trainer = Trainer(Foreign(network), optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    state = trainer.init()
    for code in ((1, 2, 1), (2, 1, 2)):
        state, _ = trainer.step(state, [batch], choice_of(code))
    before = jax.device_get(state["params"])
    state, _ = trainer.step(state, [batch], choice_of((0, 1, 2)))
    assert trainer._update._cache_size() == 1
    for index, (own, kept) in enumerate(
        zip(state["params"]["blocks"], before["blocks"], strict=True)
    ):
        for operation, (layer, old) in enumerate(zip(own, kept, strict=True), 1):
            moved = bool((np.asarray(layer["kernel"]) != old["kernel"]).any())
            assert moved == ((index, operation) in ((1, 1), (2, 2)))


def test_detections_come_best_first():
    @dataclasses.dataclass  # without a hash
    class Network:
        def init(self, key):
            return {"params": {}}

        def apply(self, variables, choice, batch):
            scores = jnp.array([[-1.0, 2.0, -3.0], [0.5, 0.1, 0.7]])
            labels = jnp.array([[1, 2, 3], [4, 5, 6]])
            boxes = labels[..., None] * jnp.ones(4)
            valid = jnp.array([[True, True, True], [True, True, False]])
            return {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}

    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(Foreign(Network()), mesh)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    found = evaluator.detect({"params": {}, "batch_stats": {}}, batch, [choice_of((0,))])
    assert found["labels"].tolist() == [[[2, 1, 3], [4, 5, 6]]]
    np.testing.assert_array_equal(found["boxes"][..., 0], found["labels"])
    assert found["valid"].tolist() == [[[True, True, True], [True, True, False]]]


def test_statistics_it_does_not_give_are_not_recalibrated(tmp_path):
    source, model = SyntheticSource(4, 64), Foreign(foreign_detector.TinyDetector(3))
    journal, options = Journal(tmp_path / "journal.jsonl", "x"), ScoreOptions(2, ImageSize(64, 64))
    with pytest.raises(UserError, match="use running"):
        SubnetScorer(model, {}, source, source, options, journal, tmp_path)


def test_a_limit_below_every_code_is_refused():
    with pytest.raises(UserError, match="the cheapest costs 0"):
        affordable(foreign_detector.TinyDetector(3), -1)
