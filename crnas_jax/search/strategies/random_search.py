"""Random search: the baseline that every other strategy is compared with."""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from crnas_jax.search.scores import Ranked, Scores, rank
from crnas_jax.spaces.space import Code, Space

_RANDOM = 7
_DRAWS_PER_CODE = 50


def random_search(
    spaces: Sequence[Space], scores: Scores, seed: int = 0, evaluations: int = 100
) -> list[Ranked]:
    """Score codes drawn without replacement.

    Args:
      spaces: each is ranked by itself; calls `sample`.
      scores: scorer of codes.
      seed: seed of the draws.
      evaluations: codes for each space; fewer where it has no more.
    """
    drawn = []
    for space in spaces:
        rng = np.random.default_rng([seed, _RANDOM])
        drawn.append(draw_new(functools.partial(space.sample, rng), set(), evaluations))
    return rank(scores.score, drawn)


def draw_new(draw: Callable[[], Code], known: set, count: int) -> list[Code]:
    """Return up to `count` different codes that are not among the known, in the order drawn."""
    codes: dict[Code, None] = {}
    for _ in range(_DRAWS_PER_CODE * count):
        if len(codes) == count:
            break
        code = draw()
        if code not in known:
            codes[code] = None
    return list(codes)
