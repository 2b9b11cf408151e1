"""What each training step draws of a space: functions of seed and step alone, on any machine."""

import numpy as np

# Streams of the drawn paths, beside those of batches and strategies.
_PATH, _BALANCED = 3, 9
# "balanced": in blocks of as many steps as there are values each is drawn once; "uniform": every
# step draws for itself.
DRAWS = ("balanced", "uniform")


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Return the generator of a step's path."""
    return np.random.default_rng([seed, _PATH, step])


def balanced(num_values: int, seed: int, place: int, step: int) -> int:
    """Draw one of `num_values` for a place, each once in a block of steps before any twice.

    Args:
      num_values: number of values.
      seed: seed of the training.
      place: number of the drawn entry; each has an order of its own.
      step: step of the training.
    """
    block, position = divmod(step, num_values)
    rng = np.random.default_rng([seed, _BALANCED, place, block])
    return int(rng.permutation(num_values)[position])
