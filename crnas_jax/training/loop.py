"""The training loop: batches in, checkpoints out; the same call on the same folder resumes."""

import dataclasses
import math
import pathlib
import time

import jax
from jaxtyping import PyTree

from crnas_jax.checkpoint import Checkpoints
from crnas_jax.data import loader
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.models.build import Detector
from crnas_jax.training.logging import RunLog
from crnas_jax.training.mesh import make_mesh, put_batch
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer, make_schedule
from crnas_jax.training.step import Trainer, sample_choice


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a run.

    Attributes:
      epochs: passes over the split.
      batch_size: images in a global batch.
      size: resizing rule.
      optimizer: see `OptimizerOptions`.
      max_objects: boxes per image a batch has room for.
      flip: mirror half of the images.
      seed: of initialisation, paths, samples and order.
      checkpoint_seconds: least time between checkpoints.
      log_every: steps between metrics.
      devices: how many to use; all when None.
    """

    epochs: float
    batch_size: int
    size: ImageSize
    optimizer: OptimizerOptions = OptimizerOptions()
    max_objects: int = 100
    flip: bool = True
    seed: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 10
    devices: int | None = None


def train(
    detector: Detector, source, options: TrainOptions, folder: pathlib.Path, name: str
) -> PyTree:
    """Trains a detector or a supernet.

    Args:
      detector: what to train.
      source: the training split.
      options: see `TrainOptions`.
      folder: receives `checkpoints/`, `metrics.jsonl` and TensorBoard events.
      name: of the run, for people.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      UserError: the loss is not finite; the last checkpoint stays.
    """
    mesh = make_mesh(options.batch_size, options.devices)
    plan = loader.Plan(source.sizes, options.batch_size, options.seed)
    steps = max(round(options.epochs * len(plan)), 1)
    optimizer = make_optimizer(options.optimizer, options.batch_size, steps)
    schedule = make_schedule(options.optimizer, options.batch_size, steps)
    trainer = Trainer(detector, optimizer, mesh, options.seed)
    state = trainer.init()
    checkpoints = Checkpoints(folder / "checkpoints")
    restored = checkpoints.restore_latest(state)
    state = state if restored is None else restored
    start = int(state["step"])
    if start < steps:
        batches = loader.batches(
            source,
            plan,
            options.size,
            options.max_objects,
            options.seed if options.flip else None,
            start,
            steps,
            jax.process_index(),
            jax.process_count(),
        )
        with RunLog(folder, name, start, steps, options.batch_size) as log:
            saved_at = time.monotonic()
            for step, batch in enumerate(batches, start + 1):
                choice = sample_choice(detector, options.seed, step - 1)
                state, metrics = trainer.step(state, put_batch(mesh, batch), choice)
                if step % options.log_every == 0 or step == steps:
                    values = {key: float(value) for key, value in metrics.items()}
                    _require_finite(values, step, float(schedule(step - 1)), batch["image_id"])
                    log.metrics(step, {**values, "learning_rate": float(schedule(step - 1))})
                    if time.monotonic() - saved_at > options.checkpoint_seconds:
                        checkpoints.save(step, state)
                        saved_at = time.monotonic()
        checkpoints.save(steps, state)
    checkpoints.close()
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def _require_finite(values, step, rate, image_ids):
    if not all(math.isfinite(value) for value in values.values()):
        raise UserError(
            "training",
            f"step {step} or shortly before",
            f"loss {values['loss']}, gradient norm {values['gradient_norm']} at learning rate "
            f"{rate:.3g}, images {image_ids.tolist()}",
            "lower rate_per_image or lengthen warmup_steps",
        )
