"""Successive halving with racing: few images for all candidates, all images for the last few.

All candidates see the same mini-batches in the same order. After each round a candidate is dropped
when a paired bootstrap over the images seen so far says that it is not the best (the resampled
images are the same for all, so effects that an image has on all of them cancel); and of the rest
only so many stay as halving allows (Jamieson and Talwalkar, arXiv 1502.07943), the worst dropped
first, so that the images are bounded also where candidates hardly differ.
"""

import math
from collections.abc import Sequence

import numpy as np

from crnas_jax.search.scores import PartialScores, Ranked, rank
from crnas_jax.search.strategies.exhaustive import candidates
from crnas_jax.spaces.space import Code, Space

# Rounds: share of the mini-batches seen by then, and largest share of candidates that are let in.
SCHEDULE = ((0.125, 1.0), (0.25, 0.5), (0.5, 0.25), (1.0, 0.125))
# Images before a candidate may be dropped: resampling fewer says little. With 8 the mean regret on
# BCCD is three times that with 16 (docs/results.md), with 20 a sixth more images are run.
_MIN_IMAGES = 16
_MIN_CANDIDATES = 2


def halving(
    spaces: Sequence[Space],
    scores: PartialScores,
    confidence: float = 0.95,
    schedule: Sequence[tuple[float, float]] = SCHEDULE,
) -> list[Ranked]:
    """Find the best code of each space in rounds.

    Args:
      spaces: candidates of one space race each other; calls `enumerate`.
      scores: scorer of codes on a part of the images.
      confidence: how sure a comparison with the best so far must be to drop a candidate.
      schedule: see `SCHEDULE`.

    Returns:
      For each space the codes that were scored on all images, best first.
    """
    alive = candidates(spaces)
    num_candidates = [len(codes) for codes in alive]
    ranked = []
    for num_batches, share in rounds(schedule, scores.num_batches, min_batches(scores)):
        # The first round lets all in; later rounds get them best first.
        alive = [
            codes[: max_entrants(share, count)]
            for codes, count in zip(alive, num_candidates, strict=True)
        ]
        ranked = rank(lambda codes, n=num_batches: scores.score_on(codes, n), alive)
        if num_batches < scores.num_batches:
            codes = sorted({code for space_codes in alive for code in space_codes})
            draws = dict(zip(codes, scores.draws(codes, num_batches), strict=True))
            alive = [_undominated(space_ranked, draws, confidence) for space_ranked in ranked]
    scores.clear()
    return ranked


def rounds(
    schedule: Sequence[tuple[float, float]], num_batches: int, min_batches: int = 1
) -> list[tuple[int, float]]:
    """Return mini-batches and share of the candidates for each round.

    A later round has more images, the last one all, and the first one at least `min_batches`
    mini-batches. Of rounds that coincide the first counts.
    """
    shares = {}
    for batch_share, candidate_share in schedule:
        seen = min(max(round(batch_share * num_batches), min_batches), num_batches)
        shares.setdefault(seen, candidate_share)
    shares.setdefault(num_batches, schedule[-1][1])
    return sorted(shares.items())


def max_entrants(share: float, num_candidates: int) -> int:
    """Return how many of a space's candidates a round lets in."""
    return max(math.ceil(share * num_candidates), _MIN_CANDIDATES)


def min_batches(scores: PartialScores) -> int:
    """Return the smallest number of first mini-batches with enough images and objects to judge."""
    enough = (
        count
        for count in range(1, scores.num_batches)
        if scores.num_images(count) >= _MIN_IMAGES and scores.num_objects(count)
    )
    return next(enough, scores.num_batches)


def max_passes(num_candidates: Sequence[int], num_batches: int, min_batches: int) -> int:
    """Return the most mini-batches that races run through subnets, over all candidates.

    Args:
      num_candidates: number of candidates in each space.
      num_batches: mini-batches there are.
      min_batches: see `rounds`.
    """
    total = seen_before = 0
    for seen, share in rounds(SCHEDULE, num_batches, min_batches):
        entrants = sum(min(max_entrants(share, count), count) for count in num_candidates)
        total += (seen - seen_before) * entrants
        seen_before = seen
    return total


def _undominated(ranked: Ranked, draws: dict, confidence: float) -> list[Code]:
    """List the codes unless the leader is better on enough of the resampled images."""
    leader = draws[ranked[0][0]]
    return [code for code, _ in ranked if np.mean(leader > draws[code]) < confidence]
