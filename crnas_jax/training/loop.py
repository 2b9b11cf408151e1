"""The training loop: batches in, checkpoints out; the same call on the same folder resumes."""

import collections
import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from crnas_jax.checkpoint import Checkpoints
from crnas_jax.data import loader
from crnas_jax.errors import NotFinite, UserError
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.runtime import interruption, team
from crnas_jax.runtime.files import read_json, write_json
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.logging import RunLog
from crnas_jax.training.optimizer import make_optimizer, make_schedule
from crnas_jax.training.step import Trainer

# A step's loss is checked when this many later steps are under way: the devices never wait.
_LAG = 2
_WEIGHTS = ("params", "batch_stats")
# Steps before those that the profiler traces.
_UNTRACED = 5


def train(
    job: TrainingJob,
    folder: pathlib.Path,
    initialise: Callable[[PyTree], PyTree] | None = None,
    share: float = 1.0,
) -> PyTree:
    """Train a network or a supernet, for detection or classification.

    Args:
      job: what to train, on what and how.
      folder: receives `checkpoints/`, `metrics.jsonl` and TensorBoard events.
      initialise: function from freshly drawn variables to those to start from
        (`export.weights.initialiser`); None to start from the fresh ones.
      share: share of the schedule after which it ends, to be gone on with by a later call.

    Returns:
      {"params", "batch_stats"}, their average where the options ask for one.

    Raises:
      UserError: the folder holds a training with other options.
      NotFinite: the loss is not finite; the last checkpoint stays.
      Stopped: a stop was requested; the state is saved.
    """
    options = job.options
    _require_same_options(folder, options)
    mesh = make_mesh(options.batch_size, options.num_devices, options.accumulate, options.fsdp)
    plan = loader.Plan(job.source.sizes, options.batch_size, options.seed)
    num_steps = plan.num_steps(options.epochs)
    optimizer = make_optimizer(options.optimizer, options.batch_size, num_steps)
    trainer = Trainer(job.model, optimizer, mesh, options.seed, options.ema_decay)
    checkpoints = Checkpoints(folder / "checkpoints")
    state = _first_state(trainer, checkpoints, initialise)
    start, end = int(state["step"]), max(round(share * num_steps), 1)
    if start < end:
        batches = loader.batches(job.source, plan, job.to_row, options.seed, start, end)
        with RunLog(folder, job.name, start, num_steps, options.batch_size) as log:
            trace = _Trace(folder / "profile", start, num_steps, options.profile)
            with contextlib.closing(trace):
                state = _run(
                    trainer, state, batches, job, (num_steps, end), checkpoints, log, trace
                )
    result = state["ema"] if options.ema_decay else state
    return {name: result[name] for name in _WEIGHTS}


def _require_same_options(folder, options):
    """Refuse to go on with other options than a training was begun with."""
    fields = {
        name: value
        for name, value in dataclasses.asdict(options).items()
        if name not in ("checkpoint_seconds", "log_every", "num_devices", "fsdp", "profile")
    }
    fields, file = json.loads(json.dumps(fields)), folder / "options.json"
    begun = team.decide(_begin_with, file, fields)
    defaults = json.loads(json.dumps(dataclasses.asdict(TrainOptions(1, 1))))
    # Options that came after a training was begun have had their defaults in it.
    begun["optimizer"] = {**defaults["optimizer"], **begun.get("optimizer", {})}
    begun = {**defaults, **begun}
    for name, value in fields.items():
        if begun.get(name) != value:
            problem = f"{value}; the training here was begun with {begun.get(name)}"
            raise UserError(file, name, problem, "set it back, or train in another folder")


def _begin_with(file, fields):
    if not file.exists():
        write_json(file, fields)
    return read_json(file)


def _first_state(trainer, checkpoints, initialise):
    """Return the latest checkpoint's state, or one before the first step."""
    restored = checkpoints.restore_latest(trainer.shapes)
    if restored is not None:
        return restored
    state = trainer.init()
    if initialise is None:
        return state
    start = initialise(hosts.fetch({name: state[name] for name in _WEIGHTS}))
    for name in _WEIGHTS:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, trainer.shapes[name])
        state[name] = hosts.put(start[name], shardings)
        if "ema" in state:
            state["ema"][name] = hosts.put(start[name], shardings)
    return state


def _run(trainer, state, batches, job, steps, checkpoints, log, trace):
    """Take a step on every batch; return the state after them.

    `steps` are those of the schedule, and the last one of this call.
    """
    options, (num_steps, end) = job.options, steps
    schedule = make_schedule(options.optimizer, options.batch_size, num_steps)
    watch = _LossWatch(job.name, schedule)
    saved_at = time.monotonic()
    for step, batch in enumerate(batches, int(state["step"]) + 1):
        choice = trainer.model.sample(options.seed, step - 1)
        log.path(choice)
        trace.at(step)
        # For what is left out of the network in training.
        batch["progress"] = np.full(len(batch["weight"]), (step - 1) / num_steps, np.float32)
        parts = put_parts(trainer.mesh, batch, options.accumulate)
        state, metrics = trainer.step(state, parts, choice)
        watch.add(step, batch["image_id"], metrics)
        stop = interruption.requested()
        due = team.decide(_is_due, saved_at, options.checkpoint_seconds)
        if step % options.log_every == 0 or step == end:
            log.metrics(step, watch.settle())
        if step == end or stop or due:
            watch.require_finite(step, state, batch["image_id"])
            checkpoints.save(step, state)
            saved_at = time.monotonic()
        if stop and step < end:
            raise interruption.Stopped(f"{job.name}: saved at step {step} of {num_steps}")
    return state


class _Trace:
    """The profiler on some steps of a training; each host traces itself.

    The first steps, which compile and fill the pipeline, are left out.
    """

    def __init__(self, folder, start, num_steps, num_traced):
        self._folder, self._is_on = folder, False
        num_untraced = min(_UNTRACED, max(num_steps - start - num_traced, 1))
        first = start + 1 + num_untraced
        self._steps = range(first, first + num_traced)

    def at(self, step):
        """Say which step begins."""
        if not self._is_on and step in self._steps:
            jax.profiler.start_trace(str(self._folder))
            self._is_on = True
        elif self._is_on and step not in self._steps:
            self.close()

    def close(self):
        """Write the trace if one was begun."""
        if self._is_on:
            self._is_on = False
            jax.profiler.stop_trace()
            print(f"profiler: {self._folder}", flush=True)


def _is_due(saved_at, seconds):
    return time.monotonic() - saved_at > seconds


class _LossWatch:
    """Check every step's loss, a few steps late, and stop the training when one is not finite."""

    def __init__(self, name, schedule):
        self._name, self._schedule = name, schedule
        self._pending = collections.deque()

    def add(self, step, image_ids, metrics):
        self._pending.append((step, image_ids, metrics))
        while len(self._pending) > _LAG:
            self._check(*self._pending.popleft())

    def settle(self):
        """Check all steps; return the last one's metrics."""
        while self._pending:
            values = self._check(*self._pending.popleft())
        return values

    def require_finite(self, step, state, image_ids):
        """Raise UserError unless the state after `step` may be saved."""
        if self._pending:
            self.settle()
        weights = {name: state[name] for name in _WEIGHTS}
        if not hosts.fetch(_all_finite(weights)):
            self._fail(step, "a parameter or statistic is not finite", image_ids)

    def _check(self, step, image_ids, metrics):
        values = {name: float(value) for name, value in hosts.fetch(metrics).items()}
        if not all(map(math.isfinite, values.values())):
            problem = f"loss {values['loss']}, gradient norm {values['gradient_norm']}"
            self._fail(step, problem, image_ids)
        return {**values, "learning_rate": float(self._schedule(step - 1))}

    def _fail(self, step, problem, image_ids):
        image_ids = np.concatenate(team.gather(image_ids))
        error = NotFinite(
            self._name,
            f"step {step}",
            f"{problem} at learning rate {float(self._schedule(step - 1)):.3g}, "
            f"images {image_ids.tolist()}; the last checkpoint is intact",
            "look at these images; or in another --workdir lower lr_per_image, lengthen "
            "warmup_steps or set clip_norm",
        )
        error.is_shared = True
        raise error


@hosts.jit
def _all_finite(tree):
    # Leaves of one shape together: a reduction for each leaf takes seconds more to compile.
    by_shape = collections.defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        by_shape[leaf.shape, leaf.dtype].append(leaf)
    return jnp.array([jnp.isfinite(jnp.stack(leaves)).all() for leaves in by_shape.values()]).all()
