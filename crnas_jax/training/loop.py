"""The training loop: batches in, checkpoints out; the same call on the same folder resumes."""

import collections
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from crnas_jax.checkpoint import Checkpoints
from crnas_jax.data import loader
from crnas_jax.errors import UserError
from crnas_jax.models.build import Model
from crnas_jax.parallel.mesh import make_mesh, put_parts, replicated
from crnas_jax.runtime import interruption
from crnas_jax.training.logging import RunLog
from crnas_jax.training.optimizer import OptimizerOptions, make_optimizer, make_schedule
from crnas_jax.training.step import Trainer, sample_choice

# A step's loss is looked at when this many later steps are under way: the devices never wait.
_LAG = 2


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a run.

    Attributes:
      epochs: passes over the split.
      batch_size: images in a global batch.
      optimizer: see `OptimizerOptions`.
      accumulate: parts the batch is cut into; only one of them is in memory at a time.
      seed: of initialisation, paths, samples and order.
      checkpoint_seconds: least time between checkpoints.
      log_every: steps between metrics.
      devices: how many to use; all when None.
    """

    epochs: float
    batch_size: int
    optimizer: OptimizerOptions = OptimizerOptions()
    accumulate: int = 1
    seed: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 10
    devices: int | None = None


def train(
    model: Model,
    source,
    row: Callable,
    options: TrainOptions,
    folder: pathlib.Path,
    name: str,
    initial: Callable[[PyTree], PyTree] | None = None,
) -> PyTree:
    """Trains a network or a supernet, for detection or classification.

    Args:
      model: what to train.
      source: the training split.
      row: from its records to rows of a batch (see `loader.batches`).
      options: see `TrainOptions`.
      folder: receives `checkpoints/`, `metrics.jsonl` and TensorBoard events.
      name: of the run, for people.
      initial: from freshly drawn variables to those to start from; these themselves when None.

    Returns:
      {"params", "batch_stats"}.

    Raises:
      UserError: the loss is not finite; the last checkpoint stays.
      Stopped: somebody asked to stop; the state is saved.
    """
    mesh = make_mesh(options.batch_size, options.devices, options.accumulate)
    plan = loader.Plan(source.sizes, options.batch_size, options.seed)
    steps = max(round(options.epochs * len(plan)), 1)
    optimizer = make_optimizer(options.optimizer, options.batch_size, steps)
    trainer = Trainer(model, optimizer, mesh, options.seed)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = _first_state(trainer, checkpoints, initial)
        start = int(state["step"])
        if start < steps:
            host, hosts = jax.process_index(), jax.process_count()
            batches = loader.batches(source, plan, row, options.seed, start, steps, host, hosts)
            with RunLog(folder, name, start, steps, options.batch_size) as log:
                state = _run(trainer, state, batches, options, steps, checkpoints, log, name)
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def _first_state(trainer, checkpoints, initial):
    """The latest checkpoint's state, or one before the first step."""
    restored = checkpoints.restore_latest(trainer.shapes)
    if restored is not None:
        return restored
    state = trainer.init()
    if initial is None:
        return state
    fresh = {name: state[name] for name in ("params", "batch_stats")}
    return {**state, **jax.device_put(initial(fresh), replicated(trainer.mesh))}


def _run(trainer, state, batches, options, steps, checkpoints, log, name):
    """Steps over all batches; the state after them."""
    watch = _Watch(name, make_schedule(options.optimizer, options.batch_size, steps))
    saved_at = time.monotonic()
    for step, batch in enumerate(batches, int(state["step"]) + 1):
        choice = sample_choice(trainer.model, options.seed, step - 1)
        parts = put_parts(trainer.mesh, batch, options.accumulate)
        state, metrics = trainer.step(state, parts, choice)
        watch.add(step, batch["image_id"], metrics)
        stop = interruption.requested()
        if step % options.log_every == 0 or step == steps:
            log.metrics(step, watch.settle())
        due = time.monotonic() - saved_at > options.checkpoint_seconds
        if step == steps or stop or due:
            watch.require_finite(step, state, batch["image_id"])
            checkpoints.save(step, state)
            saved_at = time.monotonic()
        if stop and step < steps:
            raise interruption.Stopped(f"{name}: saved at step {step} of {steps}")
    return state


class _Watch:
    """Looks at every step's loss, a few steps late, and stops the run when one is not finite."""

    def __init__(self, name, schedule):
        self._name, self._schedule = name, schedule
        self._pending = collections.deque()

    def add(self, step, image_ids, metrics):
        self._pending.append((step, image_ids, metrics))
        while len(self._pending) > _LAG:
            self._check(*self._pending.popleft())

    def settle(self):
        """Checks all steps; returns the last one's metrics."""
        while self._pending:
            values = self._check(*self._pending.popleft())
        return values

    def require_finite(self, step, state, image_ids):
        """Raises UserError unless `state`, after `step`, may be saved."""
        if self._pending:
            self.settle()
        if not _all_finite({name: state[name] for name in ("params", "batch_stats")}):
            self._fail(step, "a parameter or statistic is not finite", image_ids)

    def _check(self, step, image_ids, metrics):
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(math.isfinite, values.values())):
            problem = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
            self._fail(step, problem, image_ids)
        return {**values, "learning_rate": float(self._schedule(step - 1))}

    def _fail(self, step, problem, image_ids):
        raise UserError(
            self._name,
            f"step {step}",
            f"{problem} at learning rate {float(self._schedule(step - 1)):.3g}, "
            f"images {image_ids.tolist()}; the last checkpoint is intact",
            "look at these images; or in another --workdir lower rate_per_image, lengthen "
            "warmup_steps or set clip",
        )


@jax.jit
def _all_finite(tree):
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
