"""Training learns, resumes, and does not depend on the number of devices."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from helpers import fresh_variables, largest_difference, tiny_batch, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.checkpoint import Checkpoints
from crnas_jax.data import loader
from crnas_jax.data.classification import SyntheticClassification
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ClassificationRows, DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.classification import accuracy
from crnas_jax.models.build import Classifier, Detector
from crnas_jax.models.classifier import ClassifierOptions
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh
from crnas_jax.runtime import interruption
from crnas_jax.training import step as step_module
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer, make_schedule
from crnas_jax.training.step import Trainer

ROWS = DetectionRows(ImageSize(64, 64), max_objects=5, flip=True)
TINY = Arch("resnet_basic", (1, 1, 1, 1), widths=(8, 8, 16, 16))
SMALL = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1,), (1, 2), (1,), (1,)))


def test_interrupted_training_resumes_to_the_same_result(tmp_path):
    detector, source = Detector(TINY, tiny_options()), SyntheticSource(12, 64)
    optimizer = OptimizerOptions(schedule="cosine", warmup_steps=2)
    options = TrainOptions(3, 4, optimizer, checkpoint_seconds=0.0, log_every=4, num_devices=1)
    job = TrainingJob("detector", detector, source, ROWS, options)
    traced = dataclasses.replace(options, profile=1)
    whole = train(dataclasses.replace(job, options=traced), tmp_path / "whole")
    assert any((tmp_path / "whole" / "profile").rglob("*.xplane.pb"))

    class Interrupted(Exception):
        pass

    class FailingSource(SyntheticSource):
        num_reads = 0

        def __getitem__(self, index):
            self.num_reads += 1
            if self.num_reads > 33:
                raise Interrupted
            return super().__getitem__(index)

    with pytest.raises(Interrupted):
        train(dataclasses.replace(job, source=FailingSource(12, 64)), tmp_path / "cut")
    checkpoints = Checkpoints(tmp_path / "cut" / "checkpoints")
    assert 0 < checkpoints.steps()[-1] < 9
    resumed = train(job, tmp_path / "cut")
    assert largest_difference(whole, resumed) == 0
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3


def test_trainings_with_several_seeds_compile_once(tmp_path, caplog):
    """Each gives what it gives with programs of its own."""

    def run(name, seed):
        model = Classifier(TINY, ClassifierOptions(9))  # equal, not the same
        source, rows = SyntheticClassification(8, 32), ClassificationRows(32, augment=False)
        optimizer = OptimizerOptions(schedule="cosine")
        options = TrainOptions(2, 4, optimizer, seed=seed, num_devices=1)
        variables = train(TrainingJob(name, model, source, rows, options), tmp_path / name)
        return jax.device_get(variables)

    first = run("first", 0)
    with jax.log_compiles():
        second = run("second", 1)
    assert "Compiling" not in caplog.text
    assert largest_difference(first, second) > 0
    step_module._shared_programs.cache_clear()
    with jax.log_compiles():
        alone = run("alone", 1)
    assert "Compiling" in caplog.text
    assert largest_difference(second, alone) == 0


def test_padding_images_do_not_change_the_losses():
    detector = Detector(TINY, tiny_options())
    variables = fresh_variables(detector)
    batch, changed = tiny_batch(4, seed=1), tiny_batch(4, seed=1)
    for name in ("image", "boxes", "labels"):
        changed[name][3] = tiny_batch(4, seed=2)[name][3]
    batch["weight"][3] = changed["weight"][3] = 0
    keys = jax.random.split(jax.random.key(0), 4)
    losses = jax.jit(lambda v, batch: detector.losses(v, batch, None, keys))
    assert largest_difference(losses(variables, batch), losses(variables, changed)) < 1e-6


def test_images_without_objects_have_finite_losses():
    detector = Detector(TINY, tiny_options())
    variables = fresh_variables(detector)
    batch = tiny_batch(4)
    batch["valid"][:] = False
    keys = jax.random.split(jax.random.key(0), 4)
    losses, _ = jax.jit(lambda v, b: detector.losses(v, b, None, keys))(variables, batch)
    assert all(np.isfinite(value) for value in losses.values())
    assert losses["loss_box"] == losses["loss_rpn_box"] == 0


def test_schedules_warm_up_and_fall():
    step = make_schedule(OptimizerOptions(0.01, lr_drops=(0.5, 0.75), warmup_steps=10), 4, 100)
    np.testing.assert_allclose(
        [step(i) for i in (0, 5, 10, 49, 51, 80)],
        [4e-5, 0.02002, 0.04, 0.04, 0.004, 4e-4],
        rtol=1e-3,
    )
    cosine = make_schedule(OptimizerOptions(0.01, schedule="cosine", warmup_steps=1), 4, 100)
    np.testing.assert_allclose([cosine(50), cosine(100)], [0.02, 0], atol=1e-6)
    with pytest.raises(UserError):
        make_schedule(OptimizerOptions(schedule="linear"), 1, 1)


def test_a_batch_the_devices_cannot_share_is_refused():
    with pytest.raises(UserError, match="multiple of 8"):
        make_mesh(6, 8)
    with pytest.raises(UserError, match="are there"):
        make_mesh(6, 1000)
    with pytest.raises(UserError, match="fsdp: 3 on 8 devices; give a divisor"):
        make_mesh(8, 8, fsdp=3)


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_checkpoint(tmp_path):
    """The rate is far too high: the first step is saved, the second has no finite loss."""
    detector, source = Detector(TINY, tiny_options()), SyntheticSource(12, 64)
    optimizer = OptimizerOptions(1e30, schedule="cosine", warmup_steps=0)
    options = TrainOptions(3, 4, optimizer, checkpoint_seconds=0.0, log_every=50, num_devices=1)
    with pytest.raises(UserError) as caught:
        train(TrainingJob("diverges", detector, source, ROWS, options), tmp_path)
    message = str(caught.value)
    assert "step 2: loss nan" in message
    assert "at learning rate 3.8" in message
    image_ids = {int(text) for text in re.search(r"images \[(.*?)\]", message)[1].split(",")}
    plan = loader.Plan(source.sizes, 4, options.seed)
    assert image_ids == {index + 1 for index in plan[1].indices}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [1]
    trainer = Trainer(detector, make_optimizer(optimizer, 4, 9), make_mesh(4, 1), 0)
    state = checkpoints.restore_latest(trainer.shapes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


def test_a_state_with_one_broken_statistic_is_not_saved(tmp_path):
    """Its loss is finite, as a training step does not read the running statistics."""
    classifier = Classifier(TINY, ClassifierOptions(3))
    rows, source = ClassificationRows(32, augment=False), SyntheticClassification(4, 32)

    def broken(variables):
        statistics = jax.tree.map(np.array, variables["batch_stats"])
        jax.tree.leaves(statistics)[3][1] = np.inf
        return {**variables, "batch_stats": statistics}

    job = TrainingJob("broken", classifier, source, rows, TrainOptions(1, 4, num_devices=1))
    with pytest.raises(UserError, match="step 1: a parameter or statistic is not finite"):
        train(job, tmp_path, broken)
    assert Checkpoints(tmp_path / "checkpoints").steps() == []


def test_a_training_that_was_asked_to_stop_resumes_to_the_same_result(tmp_path, monkeypatch):
    detector, source = Detector(TINY, tiny_options()), SyntheticSource(12, 64)
    optimizer = OptimizerOptions(schedule="cosine", warmup_steps=2)
    options = TrainOptions(3, 4, optimizer, log_every=4, num_devices=1)
    job = TrainingJob("detector", detector, source, ROWS, options)
    whole = train(job, tmp_path / "whole")
    answers = iter([False] * 4 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "requested", lambda: next(answers))
        with pytest.raises(interruption.Stopped, match="saved at step 5 of 9"):
            train(job, tmp_path / "cut")
    resumed = train(job, tmp_path / "cut")
    assert largest_difference(whole, resumed) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [4, 8, 9]
    # Other options would mix two schedules, orders or batches.
    for field, value in (("epochs", 2), ("batch_size", 6), ("seed", 1)):
        changed = dataclasses.replace(job, options=dataclasses.replace(options, **{field: value}))
        with pytest.raises(UserError, match=f"options.json: {field}: {value}; the training here"):
            train(changed, tmp_path / "cut")
    quicker = dataclasses.replace(options, log_every=3, checkpoint_seconds=1.0)
    again = train(dataclasses.replace(job, options=quicker), tmp_path / "cut")
    assert largest_difference(whole, again) == 0


@pytest.mark.parametrize(
    ("spec", "min_top1"), [(TINY, 0.4), (SMALL, 0.3)], ids=["network", "supernet"]
)
def test_a_classifier_learns(tmp_path, spec, min_top1):
    model = Classifier(spec, ClassifierOptions(9, label_smoothing=0.05))
    source, rows = SyntheticClassification(180, 32), ClassificationRows(32, augment=False)
    optimizer = OptimizerOptions(0.004, schedule="cosine", warmup_steps=5)
    options = TrainOptions(10, 20, optimizer, num_devices=1)
    variables = train(TrainingJob("classifier", model, source, rows, options), tmp_path)

    def choice_of(index):
        return model.sample(0, index)

    unseen = SyntheticClassification(90, 32, seed=1)
    metrics = accuracy(model, variables, unseen, 32, 40, choice_of, num_devices=1)
    assert min_top1 < metrics["top1"] < metrics["top5"] <= 1
