"""Operation reallocation (paper section 3.3, algorithm 1): greedy search of the dilations."""

import numpy as np

from crnas_jax.search.stage_search import Scorer, best
from crnas_jax.search_space import OperationSpace


def operation_search(
    space: OperationSpace, keep: int, score: Scorer
) -> tuple[tuple[int, ...], float]:
    """Walks the blocks in order; extends each kept partial code by each operation, keeps the best.

    Args:
      space: of operation codes.
      keep: K, partial codes kept after each block.
      score: of partial codes, all of one length in a call (see `complete`).

    Returns:
      The best full code and its score; of equals the lexicographically smallest, in the top-K too.
    """
    kept = [((), 0.0)]
    for _ in range(space.blocks):
        codes = [(*code, operation) for code, _ in kept for operation in range(space.operations)]
        kept = best(codes, score(codes), keep)
    return kept[0]


def complete(space: OperationSpace, partial, seed: int, batch: int) -> tuple[int, ...]:
    """A partial code with uniformly drawn operations for the remaining blocks.

    The draw depends on seed, length and mini-batch only: all candidates at a block see the same
    completions on the same mini-batches, so that their scores differ by the candidates alone.
    """
    rng = np.random.default_rng([seed, 4, len(partial), batch])
    rest = rng.integers(space.operations, size=space.blocks - len(partial))
    return (*partial, *(int(operation) for operation in rest))
