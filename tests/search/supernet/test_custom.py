"""A network of the user's own in the trainer and the search."""

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
from crnas_jax.search.supernet.custom import CustomModel, affordable, code_to_choice
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer

sys.path.insert(0, str(ROOT / "docs" / "examples"))
import custom_detector


def test_the_example_finds_a_subnet_within_its_limit(tmp_path):
    result = custom_detector.search(tmp_path, limit=1.0, epochs=4.0, num_images=64)
    code, score, num_codes = result
    assert num_codes == 7  # nothing at all, or one of two operations at one of three blocks
    assert sum(operation != 0 for operation in code) <= 1
    assert score > 0
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 7
    resumed = custom_detector.search(tmp_path, limit=1.0, epochs=4.0, num_images=64)
    assert resumed == result


def test_a_step_moves_the_sampled_branches_alone_and_never_recompiles():
    """Neither weight decay nor the momentum of earlier steps moves the other branches."""
    traces = []

    class Network(custom_detector.TinyDetector):
        def apply(self, variables, choice, batch):
            traces.append(choice)
            return super().apply(variables, choice, batch)

    mesh = make_mesh(2, 1)
    optimizer = make_optimizer(OptimizerOptions(weight_decay=0.1, warmup_steps=1), 2, 100)
    trainer = Trainer(CustomModel(Network(3)), optimizer, mesh, seed=0)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    state = trainer.init()
    for code in ((1, 2, 1), (2, 1, 2)):
        state, _ = trainer.step(state, [batch], code_to_choice(code))
    before = jax.device_get(state["params"])
    state, _ = trainer.step(state, [batch], code_to_choice((0, 1, 2)))
    assert len(traces) == 1
    blocks = zip(before["blocks"], state["params"]["blocks"], strict=True)
    for index, (old_layers, layers) in enumerate(blocks):
        pairs = zip(old_layers, layers, strict=True)
        for operation, (old, layer) in enumerate(pairs, 1):
            moved = bool((np.asarray(layer["kernel"]) != old["kernel"]).any())
            assert moved == ((index, operation) in ((1, 1), (2, 2)))


def test_detections_come_best_first():
    @dataclasses.dataclass  # without a hash
    class Network:
        space = custom_detector.Space()

        def init(self, key):
            return {"params": {}}

        def cost(self, choice):
            return 0.0

        def apply(self, variables, choice, batch):
            scores = jnp.array([[-1.0, 2.0, -3.0], [0.5, 0.1, 0.7]])
            labels = jnp.array([[1, 2, 3], [4, 5, 6]])
            boxes = jnp.repeat(labels[..., None], 4, -1).astype(jnp.float32)
            valid = jnp.array([[True, True, True], [True, True, False]])
            return {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}

    mesh = make_mesh(2, 1)
    evaluator = SubnetEvaluator(CustomModel(Network()), mesh)
    batch = put_batch(mesh, {**tiny_batch(2), "image_id": np.arange(2)})
    variables, choices = {"params": {}, "batch_stats": {}}, [code_to_choice((0,))]
    detections = evaluator.detect(variables, batch, choices)
    assert detections["labels"].tolist() == [[[2, 1, 3], [4, 5, 6]]]
    np.testing.assert_array_equal(detections["boxes"][..., 0], detections["labels"])
    assert detections["valid"].tolist() == [[[True, True, True], [True, True, False]]]


def test_a_network_that_does_not_give_its_statistics_is_not_recalibrated(tmp_path):
    source, model = SyntheticSource(4, 64), CustomModel(custom_detector.TinyDetector(3))
    journal, options = (
        Journal(tmp_path / "journal.jsonl", "x"),
        ScoreOptions(2, ImageSize(64, 64), num_devices=1),
    )
    with pytest.raises(UserError, match="use running"):
        SubnetScorer(model, {}, source, source, options, journal, tmp_path)


def test_a_limit_below_every_code_is_refused():
    with pytest.raises(UserError, match="the cheapest costs 0"):
        affordable(custom_detector.TinyDetector(3), -1.0)
