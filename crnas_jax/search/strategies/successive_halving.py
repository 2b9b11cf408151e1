"""Successive halving: many candidates a little, the best of them further (arXiv 1502.07943)."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from crnas_jax.search.scores import Ranked, best
from crnas_jax.search.strategies.random_search import draw_new
from crnas_jax.spaces.space import Code, Space

_HALVING = 11


@runtime_checkable
class ScoresByShare(Protocol):
    """Scores of candidates that are trained a part of their schedule."""

    def score_at(self, codes: Sequence[Code], share: float) -> list[float]:
        """Score every code after a share of its schedule, going on from where it was."""


def rung_shares(factor: int = 3, num_rungs: int = 3) -> list[float]:
    """Return the shares of the schedule at which candidates are compared."""
    return [float(factor ** (rung - num_rungs + 1)) for rung in range(num_rungs)]


def rung_costs(num_codes: int, factor: int = 3, num_rungs: int = 3) -> list[float]:
    """Return what each score of each rung costs, in whole schedules, in their order."""
    costs = []
    for step in _share_steps(factor, num_rungs):
        costs += num_codes * [step]
        num_codes = max(num_codes // factor, 1)
    return costs


def _share_steps(factor, num_rungs):
    """Return the share of the schedule that each rung adds."""
    shares = rung_shares(factor, num_rungs)
    return [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]


def num_candidates(evaluations: float, factor: int = 3, num_rungs: int = 3) -> int:
    """Return how many candidates may begin for the cost of some whole schedules."""
    steps = _share_steps(factor, num_rungs)
    cost = sum(step / factor**rung for rung, step in enumerate(steps))
    return max(int(evaluations / cost), 1)


def successive_halving(
    space: Space,
    scores: ScoresByShare,
    seed: int = 0,
    evaluations: int = 100,
    factor: int = 3,
    num_rungs: int = 3,
) -> Ranked:
    """Train random candidates up to the first rung, the best of each rung up to the next.

    A rung's share of the schedule is 1 / factor of the next one's, and as many are promoted; the
    schedule is that of the last rung throughout.

    Args:
      space: calls `sample`.
      scores: scorer of codes.
      seed: seed of the draws.
      evaluations: what all may cost, in whole schedules.
      factor: see above.
      num_rungs: number of rungs.

    Returns:
      All candidates with their score on the furthest rung that they reached: those of a later rung
      come first.
    """
    rng = np.random.default_rng([seed, _HALVING])
    codes = draw_new(
        lambda: space.sample(rng), set(), num_candidates(evaluations, factor, num_rungs)
    )
    ranked: Ranked = []
    for rung, share in enumerate(rung_shares(factor, num_rungs)):
        values = scores.score_at(codes, share)
        rung_ranked = best(codes, values)
        promoted = max(len(codes) // factor, 1) if rung < num_rungs - 1 else len(codes)
        codes = [code for code, _ in rung_ranked[:promoted]]
        ranked = [*rung_ranked, *(pair for pair in ranked if pair[0] not in dict(rung_ranked))]
    return ranked
