"""Stage reallocation (paper section 3.2): the best of all allocations that cost the budget."""

from collections.abc import Callable, Sequence

from crnas_jax.search_space import StageSpace

# From codes to their scores, in the same order; higher is better.
Scorer = Callable[[Sequence[tuple[int, ...]]], Sequence[float]]


def stage_search(space: StageSpace, budget: float, score: Scorer) -> tuple[tuple[int, ...], float]:
    """Scores every allocation.

    Args:
      space: of allocations.
      budget: in blocks.
      score: see `Scorer`.

    Returns:
      The best depths and their score; of equals the lexicographically smallest.

    Raises:
      UserError: no allocation costs the budget.
    """
    space.require(budget)
    codes = list(space.enumerate(budget))
    return best(codes, score(codes), 1)[0]


def best(codes, scores, number: int) -> list[tuple[tuple[int, ...], float]]:
    """The `number` best (code, score) pairs; of equal scores the smaller code first."""
    return sorted(zip(codes, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:number]
