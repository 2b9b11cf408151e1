"""Evolution, as single-path one-shot and DetNAS do it (arXiv 1904.00420, 1903.10979)."""

import functools
from collections.abc import Sequence

import numpy as np

from crnas_jax.search.scores import Ranked, Scores, best
from crnas_jax.search.strategies.random_search import draw_new
from crnas_jax.spaces.space import BreedingSpace, Code

_EVOLUTION = 8
_MUTATION_SHARE = 0.5


def evolution(
    spaces: Sequence[BreedingSpace],
    scores: Scores,
    seed: int = 0,
    evaluations: int = 100,
    population: int = 20,
    parents: int = 5,
) -> list[Ranked]:
    """Breed generations from the best codes so far: half mutations, half crossovers.

    Args:
      spaces: each is searched by itself; calls `sample`, `mutate` and `cross`.
      scores: scorer of codes.
      seed: seed of the draws.
      evaluations: codes for each space, none twice.
      population: codes of a generation.
      parents: number of best codes that the next generation is bred from.
    """
    return [_evolve(space, scores, seed, evaluations, population, parents) for space in spaces]


def _evolve(space, scores, seed, evaluations, population, parents):
    rng = np.random.default_rng([seed, _EVOLUTION])
    values: dict[Code, float] = {}
    while len(values) < evaluations:
        room = min(population, evaluations - len(values))
        top = [code for code, _ in best(list(values), list(values.values()), parents)]
        codes = (
            draw_new(functools.partial(_breed, space, top, rng), set(values), room) if top else []
        )
        sample = functools.partial(space.sample, rng)
        codes += draw_new(sample, {*values, *codes}, room - len(codes))
        if not codes:
            break
        values |= dict(zip(codes, scores.score(codes), strict=True))
    return best(list(values), list(values.values()))


def _breed(space, top, rng):
    first, second = (top[rng.integers(len(top))] for _ in range(2))
    if rng.random() < _MUTATION_SHARE:
        return space.mutate(first, rng)
    return space.cross(first, second, rng)
