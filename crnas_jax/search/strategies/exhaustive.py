"""Exhaustive search: stage reallocation as the paper does it (section 3.2)."""

from collections.abc import Sequence

from crnas_jax.errors import UserError
from crnas_jax.search.scores import Ranked, Search, rank


def exhaustive(space, budgets: Sequence, search: Search, seed: int = 0) -> dict[object, Ranked]:
    """Scores every code of every budget, all of them on each mini-batch.

    Args:
      space: of codes: `enumerate(budget)`.
      budgets: whose best codes are wanted.
      search: scores them.
      seed: nothing is drawn.

    Returns:
      For each budget its codes and their scores, best first; of equals the lexicographically
      smallest.

    Raises:
      UserError: no code costs a budget.
    """
    del seed
    return rank(search, candidates(space, budgets))


def candidates(space, budgets: Sequence) -> dict[object, list[tuple[int, ...]]]:
    """The codes of each budget.

    Raises:
      UserError: there are none.
    """
    codes = {budget: list(space.enumerate(budget)) for budget in budgets}
    for budget, some in codes.items():
        if not some:
            of = "" if budget is None else f" that costs {budget:g}"
            raise UserError("search space", "budget", f"no code{of} is allowed", "relax the limits")
    return codes
