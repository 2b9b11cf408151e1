"""SGD with momentum and weight decay, and its learning rate schedules."""

import collections
import dataclasses
import functools

import jax
import optax

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import (
    check_below_one,
    check_choice,
    check_counts,
    check_fractions,
    check_not_negative,
    check_positive,
)

SCHEDULES = ("step", "cosine")


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Settings of the optimiser.

    Attributes:
      lr_per_image: learning rate over images in the global batch (the paper: 0.00125).
      momentum: SGD's momentum.
      weight_decay: L2 penalty on every parameter.
      decay_kernels_only: whether it leaves out biases and the scales of normalisation.
      schedule: one of `SCHEDULES`: `step`, or `cosine` down to 0.
      lr_drops: with `step`, the fractions of the run after which the rate falls to a tenth.
      warmup_steps: steps in which the rate rises linearly; at most a quarter of the run.
      warmup_start: share of the rate that it rises from.
      clip_norm: largest norm of the gradient over all parameters; a larger one is scaled down. No
        limit when 0.
    """

    lr_per_image: float = 0.00125
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_kernels_only: bool = False
    schedule: str = "step"
    lr_drops: tuple[float, ...] = (8 / 13, 11 / 13)
    warmup_steps: int = 500
    warmup_start: float = 1e-3
    clip_norm: float = 0.0

    def __post_init__(self):
        check_positive(self, "lr_per_image")
        check_not_negative(self, "momentum", "weight_decay", "clip_norm")
        check_below_one(self, "momentum", "lr_drops")
        check_counts(self, "warmup_steps", least=0)
        check_fractions(self, "warmup_start")
        check_choice(self, "decay_kernels_only", (True, False))
        check_choice(self, "schedule", SCHEDULES)
        drops = list(self.lr_drops)
        if drops != sorted(set(drops)) or any(drop <= 0 for drop in drops):
            remedy = "give ascending fractions of the run"
            raise UserError("OptimizerOptions", "lr_drops", f"{self.lr_drops}", remedy)


def make_schedule(options: OptimizerOptions, batch_size: int, num_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step."""
    peak = options.lr_per_image * batch_size
    if options.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, num_steps)
    else:
        drops = collections.Counter(round(drop * num_steps) for drop in options.lr_drops)
        main = optax.piecewise_constant_schedule(
            peak, {step: 0.1**count for step, count in drops.items()}
        )
    warmup = max(min(options.warmup_steps, num_steps // 4), 1)
    ramp = optax.linear_schedule(options.warmup_start, 1.0, warmup)
    return lambda step: main(step) * ramp(step)


def _kernels(params):
    """Return which parameters are kernels, a tree of bools."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


@functools.lru_cache(maxsize=16)
def make_optimizer(
    options: OptimizerOptions, batch_size: int, num_steps: int
) -> optax.GradientTransformation:
    """Return the paper's optimiser: decay added to the gradient, then momentum, then the rate.

    Equal arguments give the same object: an optimiser is a pair of functions, which are equal only
    when they are the same, and trainings with one optimiser share programs (`step.Trainer`).
    """
    return optax.chain(
        *([optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []),
        optax.add_decayed_weights(
            options.weight_decay, _kernels if options.decay_kernels_only else None
        ),
        optax.sgd(make_schedule(options, batch_size, num_steps), momentum=options.momentum),
    )
