"""Scores with inherited weights: one search in a supernet as strategies see it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import PyTree

from crnas_jax.search.supernet.scorer import SubnetScorer
from crnas_jax.spaces.space import Code


@dataclasses.dataclass(frozen=True)
class SupernetScores:
    """A search's view of a scorer; implements `search.scores.PartialScores`.

    Attributes:
      scorer: scorer of the supernet's subnets.
      name: name of the search in the journal.
      choice_of: function from (code, mini-batch) to a path, see `SubnetScorer.score`.
      label: function from a list of codes to the text shown as progress; None for the name.
    """

    scorer: SubnetScorer
    name: str
    choice_of: Callable[[Code, int], PyTree]
    label: Callable[[Sequence[Code]], str] | None = None
    # By code the most mini-batches asked for: the journal may hold scores of other strategies too.
    _asked: dict[Code, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """Digest under which the journal has this search's scores."""
        return self.scorer.journal.key

    @property
    def num_batches(self) -> int:
        """Number of mini-batches there are to score on."""
        return self.scorer.num_batches

    def num_images(self, num_batches: int) -> int:
        """Count the images in the first mini-batches."""
        return len(self.scorer.image_ids(num_batches))

    def num_objects(self, num_batches: int) -> int:
        """Count the objects in the first mini-batches that AP counts."""
        return self.scorer.num_objects(num_batches)

    def score(self, codes: Sequence[Code]) -> list[float]:
        """Return the AP of every code on all mini-batches."""
        return self._score(codes)

    def score_on(self, codes: Sequence[Code], num_batches: int) -> list[float]:
        """Return the AP of every code on the first mini-batches; matches stay until `clear`."""
        return self._score(codes, num_batches, keep_matches=True)

    def draws(self, codes: Sequence[Code], num_batches: int) -> np.ndarray:
        """Return the AP of every code on resampled images, see `SubnetScorer.draws`."""
        return self.scorer.draws(self.name, codes, self.choice_of, num_batches)

    def clear(self) -> None:
        """Remove the matches of the search."""
        self.scorer.clear(self.name)

    def effort(self) -> dict[str, int]:
        """Return `evaluated` and `image_passes` of this search, see `Journal.effort`."""
        passes = sum(map(self.num_images, self._asked.values()))
        return {"evaluated": len(self._asked), "image_passes": passes}

    def _score(self, codes, num_batches=None, keep_matches=False):
        label = self.label(codes) if self.label else self.name
        for code in map(tuple, codes):
            asked = self._asked.get(code, 0)
            self._asked[code] = max(asked, num_batches or self.num_batches)
        scores = self.scorer.score(
            self.name, codes, self.choice_of, label, num_batches, keep_matches
        )
        return [score.value for score in scores]
