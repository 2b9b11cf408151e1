"""What all strategies share: `search` scores codes, and the result is a ranking.

A strategy is a function of (space, budgets, search, seed) and options of its own. The search has
the journal: a strategy that is run again, after a crash too, asks for the same scores and finds
them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from crnas_jax.search.supernet.scorer import SubnetScorer

# Codes and their scores, best first.
Ranked = list[tuple[tuple[int, ...], float]]


@dataclasses.dataclass(frozen=True)
class Search:
    """The scorer as one search sees it.

    Attributes:
      scorer: of its supernet.
      name: of the search in the journal.
      choices_of: see `SubnetScorer.score`.
      label: from a list of codes to what people are shown; the name when None.
    """

    scorer: SubnetScorer
    name: str
    choices_of: Callable
    label: Callable[[Sequence], str] | None = None

    @property
    def batches(self) -> int:
        """Mini-batches there are to score on."""
        return self.scorer.batches

    def images(self, batches: int) -> int:
        """Images in the first mini-batches."""
        return len(self.scorer.image_ids(batches))

    def objects(self, batches: int) -> int:
        """Objects that count in the first mini-batches."""
        return self.scorer.objects(batches)

    def score(self, codes, batches: int | None = None, keep: bool = False) -> list[float]:
        """AP of every code; see `SubnetScorer.score`."""
        label = self.label(codes) if self.label else self.name
        scores = self.scorer.score(self.name, codes, self.choices_of, label, batches, keep)
        return [score.value for score in scores]

    def draws(self, codes, batches: int) -> np.ndarray:
        """See `SubnetScorer.draws`."""
        return self.scorer.draws(self.name, codes, self.choices_of, batches)

    def clear(self) -> None:
        """See `SubnetScorer.clear`."""
        self.scorer.clear(self.name)


def rank(search: Search, codes: dict[object, Sequence], *given, **options) -> dict[object, Ranked]:
    """The codes of each budget, best first; all are scored in one go, as `Search.score` is told."""
    every = sorted({code for some in codes.values() for code in some})
    scores = dict(zip(every, search.score(every, *given, **options), strict=True))
    return {budget: best(some, [scores[code] for code in some]) for budget, some in codes.items()}


def best(codes: Sequence, scores: Sequence[float], number: int | None = None) -> Ranked:
    """The `number` best pairs, all when None; of equal scores the smaller code first."""
    return sorted(zip(codes, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))[:number]
