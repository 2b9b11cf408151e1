"""Exhaustive search: stage reallocation as the paper does it (section 3.2)."""

from collections.abc import Sequence

from crnas_jax.errors import UserError
from crnas_jax.search.scores import Ranked, Scores, rank
from crnas_jax.spaces.space import Code, Space


def exhaustive(spaces: Sequence[Space], scores: Scores) -> list[Ranked]:
    """Score every code of every space in one call.

    Args:
      spaces: each is ranked by itself; calls `enumerate`.
      scores: scorer of codes.

    Returns:
      For each space its codes and their scores, best first; ties go to the lexicographically
      smaller code.

    Raises:
      UserError: a space has no code.
    """
    return rank(scores.score, candidates(spaces))


def candidates(spaces: Sequence[Space]) -> list[list[Code]]:
    """List the codes of each space.

    Raises:
      UserError: a space has none.
    """
    codes = [list(space.enumerate()) for space in spaces]
    for space, space_codes in zip(spaces, codes, strict=True):
        if not space_codes:
            problem = f"no {space.noun} is allowed"
            raise UserError("search space", "budget", problem, "relax the limits")
    return codes
