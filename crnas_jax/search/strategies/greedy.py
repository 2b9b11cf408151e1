"""Operation reallocation (paper section 3.3, algorithm 1): greedy search of the dilations."""

from collections.abc import Sequence

import numpy as np

from crnas_jax.errors import UserError
from crnas_jax.search.scores import Ranked, Scores, best
from crnas_jax.spaces.space import BlockSpace, Code

# Stream of the completions, beside those of the other strategies.
_COMPLETION = 4


def greedy(spaces: Sequence[BlockSpace], scores: Scores, beam: int = 3) -> list[Ranked]:
    """Walk the blocks in order; extend each partial code by each operation, keep the best.

    Args:
      spaces: each is searched by itself.
      scores: scorer of partial codes, all of one length in a call (see `complete`).
      beam: K, the number of partial codes that stay after each block.

    Returns:
      For each space its last full codes and their scores, best first; ties go to the
      lexicographically smaller code, in the top K too.

    Raises:
      UserError: no code is allowed.
    """
    return [_greedy(space, scores, beam) for space in spaces]


def _greedy(space, scores, beam):
    ranked = [((), 0.0)]
    for _ in range(space.num_blocks):
        codes = [
            (*code, operation) for code, _ in ranked for operation in range(space.num_operations)
        ]
        codes = [code for code in codes if space.may_begin_with(code)]
        if not codes:
            raise UserError("search space", "constraints", "no code is allowed", "relax them")
        ranked = best(codes, scores.score(codes), beam)
    return ranked


def num_evaluations(space: BlockSpace, beam: int = 3) -> int:
    """Count the partial codes that are scored where all are allowed: 3 + 9 (B - 1) for K = 3.

    Args:
      space: space of full codes.
      beam: K, the number of partial codes that stay after each block.
    """
    total, num_partial_codes = 0, 1
    for _ in range(space.num_blocks):
        total += num_partial_codes * space.num_operations
        num_partial_codes = min(beam, num_partial_codes * space.num_operations)
    return total


def complete(space: BlockSpace, partial: Code, seed: int, batch: int) -> Code:
    """Complete a partial code with uniformly drawn operations for the remaining blocks.

    The draw depends on seed, length and mini-batch only: all candidates at a block see the same
    completions on the same mini-batches, so that their scores differ by the candidates alone.

    Args:
      space: space of full codes.
      partial: first entries of a code.
      seed: seed of the draw.
      batch: index of the mini-batch.
    """
    rng = np.random.default_rng([seed, _COMPLETION, len(partial), batch])
    rest = rng.integers(space.num_operations, size=space.num_blocks - len(partial))
    return (*partial, *(int(operation) for operation in rest))
