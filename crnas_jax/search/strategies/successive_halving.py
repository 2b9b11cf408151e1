"""Successive halving with racing: few images for all candidates, all images for the last few.

All candidates see the same mini-batches in the same order. After each round one is out when a
paired bootstrap over the images seen so far says that it is not the best (the resampled images are
the same for all, so what an image does to all cancels); and of the rest only so many stay as
halving allows (Jamieson and Talwalkar, arXiv 1502.07943), the worst going first, so that the images
are bounded also where candidates hardly differ.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from crnas_jax.search.scores import Ranked, Search, rank
from crnas_jax.search.strategies.exhaustive import candidates

# Rounds: share of the mini-batches seen by then, and the most candidates that are let in.
SCHEDULE = ((0.125, 1.0), (0.25, 0.5), (0.5, 0.25), (1.0, 0.125))
# Images before a candidate may be out: resampling fewer says little. With 8 the mean
# regret on BCCD is three times that with 16 (docs/results.md), with 20 a sixth more images are run.
_FEWEST = 16


def halving(
    space,
    budgets: Sequence,
    search: Search,
    seed: int = 0,
    confidence: float = 0.95,
    schedule: Sequence[tuple[float, float]] = SCHEDULE,
) -> dict[object, Ranked]:
    """The best of each budget's codes.

    Args:
      space: of codes: `enumerate(budget)`.
      budgets: whose best codes are wanted; candidates of one budget race each other.
      search: scores them.
      seed: nothing is drawn here.
      confidence: with which a candidate is out, in one comparison with the best so far.
      schedule: see `SCHEDULE`.

    Returns:
      For each budget those that were scored on all images, best first.
    """
    del seed
    alive = candidates(space, budgets)
    most = {budget: len(codes) for budget, codes in alive.items()}
    ranked = {}
    first = fewest(search.batches, search.images, search.objects)
    for batches, kept in rounds(schedule, search.batches, first):
        # All are let in to the first round; later ones find them best first.
        alive = {budget: codes[: room(kept, most[budget])] for budget, codes in alive.items()}
        ranked = rank(search, alive, batches, keep=True)
        if batches < search.batches:
            every = sorted({code for codes in alive.values() for code in codes})
            draws = dict(zip(every, search.draws(every, batches), strict=True))
            alive = {budget: _unbeaten(ranked[budget], draws, confidence) for budget in alive}
    search.clear()
    return ranked


def rounds(
    schedule: Sequence[tuple[float, float]], batches: int, fewest: int = 1
) -> list[tuple[int, float]]:
    """Mini-batches and share of the candidates of each round.

    A later round has more images, the last one all, and the first one `fewest` mini-batches at
    least. Of rounds that fall together the first counts.
    """
    found = {}
    for share, kept in schedule:
        found.setdefault(min(max(round(share * batches), fewest), batches), kept)
    found.setdefault(batches, schedule[-1][1])
    return sorted(found.items())


def room(kept: float, candidates: int) -> int:
    """How many of a budget's candidates a round lets in."""
    return max(math.ceil(kept * candidates), 2)


def fewest(batches: int, images: Callable[[int], int], objects: Callable[[int], int]) -> int:
    """The least number of first mini-batches with enough images and objects to judge by."""
    enough = (b for b in range(1, batches) if images(b) >= _FEWEST and objects(b))
    return next(enough, batches)


def passes(counts: Sequence[int], batches: int, fewest: int) -> int:
    """The most mini-batches through a subnet that races of so many candidates take.

    Args: candidates of each budget; mini-batches there are; see `rounds`.
    """
    total = before = 0
    for seen, kept in rounds(SCHEDULE, batches, fewest):
        total += (seen - before) * sum(min(room(kept, count), count) for count in counts)
        before = seen
    return total


def _unbeaten(ranked: Ranked, draws: dict, confidence: float) -> list[tuple[int, ...]]:
    """Those of which it is not as sure that the first is better on the resampled images."""
    leader = draws[ranked[0][0]]
    return [code for code, _ in ranked if np.mean(leader > draws[code]) < confidence]
