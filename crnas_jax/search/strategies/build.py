"""The table of strategies: from a name and options to functions of (spaces, scores)."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_below_one, check_counts, check_positive
from crnas_jax.search.scores import Ranked
from crnas_jax.search.strategies import successive_halving
from crnas_jax.search.strategies.evolution import evolution
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.greedy import greedy, num_evaluations
from crnas_jax.search.strategies.random_search import random_search
from crnas_jax.search.strategies.successive_halving import halving
from crnas_jax.spaces.space import Space


@dataclasses.dataclass(frozen=True)
class StrategyOptions:
    """The options of all strategies.

    Attributes:
      beam: K of the greedy search (algorithm 1).
      evaluations: codes that random search and evolution score.
      population: codes of a generation of evolution.
      parents: codes that evolution's next generation is bred from.
      confidence: how sure halving must be to drop a candidate early.
      seed: seed of everything that a strategy draws.
    """

    beam: int = 3
    evaluations: int = 100
    population: int = 20
    parents: int = 5
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self):
        check_counts(self, "beam", "evaluations", "population", "parents")
        check_positive(self, "confidence")
        check_below_one(self, "confidence")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A strategy with its options.

    Attributes:
      name: name in the table.
      run: function from spaces and scores to a ranking for each space.
      max_evaluations: function from a space to the most codes that are scored.
      max_passes: function from (candidates of each space, mini-batches, least mini-batches of a
        first round) to the most mini-batches that are run through subnets.
      scores_partial_codes: whether it scores beginnings of codes (`greedy.complete`).
    """

    name: str
    run: Callable[..., list[Ranked]]
    max_evaluations: Callable[[Space], int]
    max_passes: Callable[[Sequence[int], int, int], int]
    scores_partial_codes: bool = False


def _all_images(num_evaluations, num_batches, min_batches):
    del min_batches  # every code sees all images
    return sum(num_evaluations) * num_batches


def _exhaustive(options):
    del options
    return Strategy("exhaustive", exhaustive, lambda space: space.count(), _all_images)


def _halving(options):
    run = functools.partial(halving, confidence=options.confidence)
    return Strategy("halving", run, lambda space: space.count(), successive_halving.max_passes)


def _random(options):
    run = functools.partial(random_search, seed=options.seed, evaluations=options.evaluations)
    return Strategy(
        "random", run, lambda space: min(space.count(), options.evaluations), _all_images
    )


def _evolution(options):
    run = functools.partial(
        evolution,
        seed=options.seed,
        evaluations=options.evaluations,
        population=options.population,
        parents=options.parents,
    )
    return Strategy(
        "evolution", run, lambda space: min(space.count(), options.evaluations), _all_images
    )


def _greedy(options):
    run = functools.partial(greedy, beam=options.beam)
    return Strategy(
        "greedy",
        run,
        lambda space: num_evaluations(space, options.beam),
        _all_images,
        scores_partial_codes=True,
    )


# Strategies for each level of the search, by name.
STRATEGIES = {
    "stage": {
        "exhaustive": _exhaustive,
        "halving": _halving,
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
