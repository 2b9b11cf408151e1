"""The table of strategies: from a name and options to functions of (spaces, scores)."""

import dataclasses
import functools
from collections.abc import Callable

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_below_one, check_counts, check_positive
from crnas_jax.search.scores import Ranked
from crnas_jax.search.strategies.evolution import evolution
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.greedy import greedy, num_evaluations
from crnas_jax.search.strategies.racing import racing
from crnas_jax.search.strategies.random_search import random_search
from crnas_jax.spaces.space import Code, Space


@dataclasses.dataclass(frozen=True)
class StrategyOptions:
    """The options of all strategies.

    Attributes:
      beam: K of the greedy search (algorithm 1).
      evaluations: codes that random search and evolution score.
      population: codes of a generation of evolution.
      parents: codes that evolution's next generation is bred from.
      confidence: how sure racing is not to drop the truly best candidate early.
      keep: codes that racing never drops.
      num_best: best codes that racing looks for.
      seed: seed of everything that a strategy draws.
    """

    beam: int = 3
    evaluations: int = 100
    population: int = 20
    parents: int = 5
    confidence: float = 0.95
    keep: tuple[Code, ...] = ()
    num_best: int = 1
    seed: int = 0

    def __post_init__(self):
        check_counts(self, "beam", "evaluations", "population", "parents", "num_best")
        check_positive(self, "confidence")
        check_below_one(self, "confidence")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A strategy with its options.

    Attributes:
      name: name in the table.
      run: function from spaces and scores to a ranking for each space.
      max_evaluations: function from a space to the most codes that are scored, each at most on all
        images.
      scores_partial_codes: whether it scores beginnings of codes (`greedy.complete`).
    """

    name: str
    run: Callable[..., list[Ranked]]
    max_evaluations: Callable[[Space], int]
    scores_partial_codes: bool = False


def _exhaustive(options):
    del options
    return Strategy("exhaustive", exhaustive, lambda space: space.count())


def _racing(options):
    run = functools.partial(
        racing, confidence=options.confidence, keep=options.keep, num_best=options.num_best
    )
    return Strategy("racing", run, lambda space: space.count())


def _random(options):
    run = functools.partial(random_search, seed=options.seed, evaluations=options.evaluations)
    return Strategy("random", run, lambda space: min(space.count(), options.evaluations))


def _evolution(options):
    run = functools.partial(
        evolution,
        seed=options.seed,
        evaluations=options.evaluations,
        population=options.population,
        parents=options.parents,
    )
    return Strategy("evolution", run, lambda space: min(space.count(), options.evaluations))


def _greedy(options):
    return Strategy(
        "greedy",
        functools.partial(greedy, beam=options.beam),
        lambda space: num_evaluations(space, options.beam),
        scores_partial_codes=True,
    )


# Strategies for each level of the search, by name.
STRATEGIES = {
    "stage": {
        "exhaustive": _exhaustive,
        "racing": _racing,
        "random": _random,
        "evolution": _evolution,
    },
    "operation": {"greedy": _greedy, "random": _random, "evolution": _evolution},
}


def strategy(name: str, level: str, options: StrategyOptions) -> Strategy:
    """Return a strategy of a level (`stage` or `operation`) with its options.

    Raises:
      UserError: the level has no such strategy; the message lists those there are.
    """
    table = STRATEGIES[level]
    if name not in table:
        allowed = " or ".join(repr(known) for known in table)
        field = f"search.{level}_strategy"
        raise UserError("config", field, f"{name!r} is unknown", f"use {allowed}")
    return table[name](options)
