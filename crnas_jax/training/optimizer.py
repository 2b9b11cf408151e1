"""SGD with momentum and weight decay, and its learning rate schedules."""

import collections
import dataclasses

import optax

from crnas_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """Settings of the optimiser.

    Attributes:
      rate_per_image: learning rate over images in the global batch (the paper: 0.00125).
      momentum: of SGD.
      weight_decay: L2, on every parameter.
      schedule: `step` or `cosine` (to 0).
      drops: for `step`, the fractions of the run after which the rate falls to a tenth.
      warmup_steps: the rate rises linearly over them, from a thousandth; at most a quarter of
        the run.
      clip: greatest norm of the gradient over all parameters, scaled down to it; none when 0.
    """

    rate_per_image: float = 0.00125
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "step"
    drops: tuple[float, ...] = (8 / 13, 11 / 13)
    warmup_steps: int = 500
    clip: float = 0.0


def make_schedule(options: OptimizerOptions, batch_size: int, steps: int) -> optax.Schedule:
    """Learning rate by step."""
    peak = options.rate_per_image * batch_size
    if options.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, steps)
    elif options.schedule == "step":
        drops = collections.Counter(round(drop * steps) for drop in options.drops)
        main = optax.piecewise_constant_schedule(
            peak, {step: 0.1**number for step, number in drops.items()}
        )
    else:
        raise UserError(
            "config", "schedule", f"{options.schedule!r} is unknown", "use 'step' or 'cosine'"
        )
    warmup = max(min(options.warmup_steps, steps // 4), 1)
    ramp = optax.linear_schedule(1e-3, 1.0, warmup)
    return lambda step: main(step) * ramp(step)


def make_optimizer(
    options: OptimizerOptions, batch_size: int, steps: int
) -> optax.GradientTransformation:
    """The paper's optimiser: decay added to the gradient, then momentum, then the rate."""
    return optax.chain(
        *([optax.clip_by_global_norm(options.clip)] if options.clip else []),
        optax.add_decayed_weights(options.weight_decay),
        optax.sgd(make_schedule(options, batch_size, steps), momentum=options.momentum),
    )
