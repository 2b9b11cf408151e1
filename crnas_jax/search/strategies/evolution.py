"""Random search and evolution: what the paper's searches are to be held against."""

import functools
from collections.abc import Sequence

import numpy as np

from crnas_jax.search.scores import Ranked, Search, best, rank

_RANDOM, _EVOLUTION = 7, 8


def random_search(
    space, budgets: Sequence, search: Search, seed: int = 0, evaluations: int = 100
) -> dict[object, Ranked]:
    """Scores codes drawn without replacement.

    Args:
      space: of codes: `sample(rng, budget)`.
      budgets: whose best codes are wanted.
      search: scores them.
      seed: of the draws.
      evaluations: codes for each budget; fewer where there are no more.
    """
    drawn = {}
    for budget in budgets:
        rng = np.random.default_rng([seed, _RANDOM])
        drawn[budget] = _fresh(functools.partial(space.sample, rng, budget), set(), evaluations)
    return rank(search, drawn)


def evolution(
    space,
    budgets: Sequence,
    search: Search,
    seed: int = 0,
    evaluations: int = 100,
    population: int = 20,
    parents: int = 5,
) -> dict[object, Ranked]:
    """Generations bred from the best so far, as single-path one-shot and DetNAS do (arXiv
    1904.00420, 1903.10979): half mutations, half crossovers of the `parents` best.

    Args:
      space: of codes: `sample`, `mutate` and `cross` (see `StageSpace`).
      budgets: whose best codes are wanted.
      search: scores them.
      seed: of the draws.
      evaluations: codes for each budget, no code twice.
      population: codes of a generation.
      parents: of the next one.
    """
    found = {}
    for budget in budgets:
        rng = np.random.default_rng([seed, _EVOLUTION])
        scores: dict[tuple, float] = {}
        random = functools.partial(space.sample, rng, budget)

        while len(scores) < evaluations:
            room = min(population, evaluations - len(scores))
            top = [code for code, _ in best(scores.keys(), scores.values(), parents)]

            def bred(b=budget, r=rng, top=top):
                first, second = (top[r.integers(len(top))] for _ in range(2))
                if r.random() < 0.5:
                    return space.mutate(first, r, b)
                return space.cross(first, second, r, b)

            codes = _fresh(bred, set(scores), room) if top else []
            codes += _fresh(random, {*scores, *codes}, room - len(codes))
            if not codes:
                break
            scores |= dict(zip(codes, search.score(codes), strict=True))
        found[budget] = best(list(scores), list(scores.values()))
    return found


def _fresh(draw, seen, number):
    """Up to `number` different codes that are not among the seen, in the order drawn."""
    codes: dict[tuple, None] = {}
    for _ in range(50 * number):
        if len(codes) == number:
            break
        code = draw()
        if code not in seen:
            codes[code] = None
    return list(codes)
