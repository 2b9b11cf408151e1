"""The strategies by name; each is a function of (space, budgets, search, seed)."""

import functools
from collections.abc import Callable

from crnas_jax.search.strategies.evolution import evolution, random_search
from crnas_jax.search.strategies.exhaustive import exhaustive
from crnas_jax.search.strategies.greedy import greedy
from crnas_jax.search.strategies.successive_halving import halving

STAGE_STRATEGIES = ("exhaustive", "halving", "random", "evolution")
OPERATION_STRATEGIES = ("greedy", "random", "evolution")


def strategy(name: str, fields) -> Callable:
    """A strategy with its options.

    Args:
      name: one of the above.
      fields: the options of all, as attributes (`config.search`).
    """
    evaluations = fields.evaluations
    if name == "random":
        return functools.partial(random_search, evaluations=evaluations)
    if name == "evolution":
        return functools.partial(
            evolution,
            evaluations=evaluations,
            population=fields.population,
            parents=fields.parents,
        )
    if name == "greedy":
        return functools.partial(greedy, keep=fields.keep)
    if name == "halving":
        return functools.partial(halving, confidence=fields.confidence)
    return exhaustive
