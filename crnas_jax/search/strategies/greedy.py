"""Operation reallocation (paper section 3.3, algorithm 1): greedy search of the dilations."""

from collections.abc import Sequence

import numpy as np

from crnas_jax.errors import UserError
from crnas_jax.search.scores import Ranked, Search, best
from crnas_jax.spaces.stages import OperationSpace


def greedy(
    space: OperationSpace, budgets: Sequence, search: Search, seed: int = 0, keep: int = 3
) -> dict[object, Ranked]:
    """Walks the blocks in order; extends each kept partial code by each operation, keeps the best.

    Args:
      space: of operation codes.
      budgets: one, which every code costs.
      search: scores partial codes, all of one length in a call (see `complete`).
      seed: nothing is drawn here.
      keep: K, partial codes kept after each block.

    Returns:
      For the budget the kept full codes and their scores, best first; of equals the
      lexicographically smallest, in the top-K too.

    Raises:
      UserError: no code is allowed.
    """
    del seed
    kept = [((), 0.0)]
    for _ in range(space.blocks):
        codes = [(*code, operation) for code, _ in kept for operation in range(space.operations)]
        codes = [code for code in codes if space.begins(code)]
        if not codes:
            raise UserError("search space", "constraints", "no code is allowed", "relax them")
        kept = best(codes, search.score(codes), keep)
    return dict.fromkeys(budgets, kept)


def complete(space: OperationSpace, partial, seed: int, batch: int) -> tuple[int, ...]:
    """A partial code with uniformly drawn operations for the remaining blocks.

    The draw depends on seed, length and mini-batch only: all candidates at a block see the same
    completions on the same mini-batches, so that their scores differ by the candidates alone.
    """
    rng = np.random.default_rng([seed, 4, len(partial), batch])
    rest = rng.integers(space.operations, size=space.blocks - len(partial))
    return (*partial, *(int(operation) for operation in rest))
