"""What strategies and studies see of a scorer: two protocols, and rankings of codes.

Supernet scores (`search.supernet.scores`) and trained scores (`search.trained`) are two
implementations. A scorer has the journal: a strategy that is run again, after a crash too, asks for
the same scores and gets them from there.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from crnas_jax.spaces.space import Code

# Codes and their scores, best first.
Ranked = list[tuple[Code, float]]


@runtime_checkable
class Scores(Protocol):
    """Scores of codes; higher is better."""

    def score(self, codes: Sequence[Code]) -> list[float]:
        """Score every code; codes in the journal are not scored again."""

    def effort(self) -> dict[str, int]:
        """Return `evaluated`, the number of scored codes, and `image_passes`, images run in all."""


@runtime_checkable
class PartialScores(Scores, Protocol):
    """Scores that may look at a part of the images first, as racing does.

    Attributes:
      num_batches: number of mini-batches there are to score on.
    """

    num_batches: int

    def num_images(self, num_batches: int) -> int:
        """Count the images in the first mini-batches."""

    def num_objects(self, num_batches: int) -> int:
        """Count the objects in the first mini-batches that AP counts."""

    def score_on(self, codes: Sequence[Code], num_batches: int) -> list[float]:
        """Score every code on the first mini-batches; matches stay cached until `clear`."""

    def draws(self, codes: Sequence[Code], num_batches: int) -> np.ndarray:
        """Score every code on the same resampled images: [codes, samples]."""

    def clear(self) -> None:
        """Remove the cached matches."""


def rank(
    score: Callable[[list[Code]], list[float]], candidates: Sequence[Sequence[Code]]
) -> list[Ranked]:
    """Rank the candidates of each space; all are scored in one call.

    Args:
      score: function that scores a list of codes, such as `Scores.score`.
      candidates: codes of each space.
    """
    codes = sorted({code for space_codes in candidates for code in space_codes})
    values = dict(zip(codes, score(codes), strict=True))
    return [best(codes, [values[code] for code in codes]) for codes in candidates]


def best(codes: Sequence[Code], scores: Sequence[float], count: int | None = None) -> Ranked:
    """Return the `count` best pairs, all when None; ties go to the smaller code."""
    return sorted(zip(codes, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:count]
