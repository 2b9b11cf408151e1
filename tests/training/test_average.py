"""The moving average of weights: three steps by hand, and what a training returns and keeps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import largest_difference, tiny_spinenet

from crnas_jax.checkpoint import Checkpoints
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.layers import LayerOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet.banks import WHOLE
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer
from crnas_jax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class Slope:
    """One weight with a gradient of 1, and a statistic that counts steps."""

    example_choice = None

    def init(self, key):
        return {"params": {"kernel": jnp.ones(1)}, "batch_stats": {"mean": jnp.zeros(1)}}

    def sample(self, seed, step):
        return None

    def losses(self, variables, batch, choice, keys):
        stats = jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])
        return {"loss": variables["params"]["kernel"].sum()}, stats

    def rows(self, tree, choice):
        return jax.tree.map(lambda leaf: WHOLE, tree)

    def trainable_mask(self, gradient):
        return None


def test_three_steps_against_literal_numbers():
    """Shares 1/10, 2/11 and 3/12, bounded by the decay of 0.2."""
    optimizer = make_optimizer(
        OptimizerOptions(0.05, momentum=0.0, weight_decay=0.0, lr_drops=(), warmup_steps=0), 2, 100
    )
    mesh = make_mesh(2, 1)
    trainer = Trainer(Slope(), optimizer, mesh, 0, ema_decay=0.2)
    batch = {"weight": np.ones(2, np.float32), "image_id": np.arange(2)}
    parts, state = put_parts(mesh, batch, 1), trainer.init()
    weights, averages, statistics = [1.0], [1.0], [0.0]
    shares = [0.1, 2 / 11, 0.2]
    for step, share in enumerate(shares):
        state, _ = trainer.step(state, parts)
        rate = 0.1 * (1e-3 if step == 0 else 1)  # the first step is the warm-up's
        weights.append(weights[-1] - rate)
        averages.append(share * averages[-1] + (1 - share) * weights[-1])
        statistics.append(share * statistics[-1] + (1 - share) * (step + 1))
        np.testing.assert_allclose(state["params"]["kernel"], weights[-1], rtol=1e-6)
        np.testing.assert_allclose(state["ema"]["params"]["kernel"], averages[-1], rtol=1e-6)
        np.testing.assert_allclose(state["ema"]["batch_stats"]["mean"], statistics[-1], rtol=1e-6)


@pytest.mark.campaign
@pytest.mark.programs
def test_a_resumed_training_with_all_that_is_drawn_equals_an_uninterrupted_one(tmp_path):
    """Stochastic depth, DropBlock, scale jitter and the average, which is what is returned."""
    layers = LayerOptions("swish", 0.9, 1e-3, 0.3, drop_block=0.2, drop_block_size=2)
    options = RetinaNetOptions(4, head=RetinaHeadOptions("spinenet", 1))
    detector = Detector(tiny_spinenet(num_levels=3), options, layers=layers)
    rows = DetectionRows(ImageSize(64, 64), 5, flip=True, scale_jitter=(0.5, 2.0))
    recipe = OptimizerOptions(schedule="cosine", warmup_steps=2, decay_kernels_only=True)
    train_options = TrainOptions(
        3, 4, recipe, ema_decay=0.9, checkpoint_seconds=0.0, log_every=4, num_devices=1
    )

    class FailingSource(SyntheticSource):
        num_reads = 0

        def __getitem__(self, index):
            self.num_reads += 1
            if self.num_reads > 33:
                raise InterruptedError
            return super().__getitem__(index)

    source = SyntheticSource(12, 64)
    job = TrainingJob("detector", detector, source, rows, train_options)
    whole = train(job, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(dataclasses.replace(job, source=FailingSource(12, 64)), tmp_path / "cut")
    assert 0 < Checkpoints(tmp_path / "cut" / "checkpoints").steps()[-1] < 9
    assert largest_difference(whole, train(job, tmp_path / "cut")) == 0
    trainer = Trainer(detector, make_optimizer(recipe, 4, 9), make_mesh(4, 1), 0, ema_decay=0.9)
    state = Checkpoints(tmp_path / "whole" / "checkpoints").restore_latest(trainer.shapes)
    assert largest_difference(whole, state["ema"]) == 0
    assert largest_difference(whole["params"], state["params"]) > 0
    without = dataclasses.replace(train_options, ema_decay=0.0)
    with pytest.raises(UserError, match=r"ema_decay: 0\.0; the training here was begun with 0\.9"):
        train(dataclasses.replace(job, options=without), tmp_path / "whole")
