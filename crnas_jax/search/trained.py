"""Scores of candidates that are each trained alone."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from crnas_jax.data.source import DetectionSource
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import (
    MatchTable,
    bootstrap_weights,
    confidence_interval,
    match_tables,
)
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.results import detections_from_results
from crnas_jax.runtime import team
from crnas_jax.search.journal import Journal, Score
from crnas_jax.spaces.space import Code


@dataclasses.dataclass(frozen=True)
class TrainedScores:
    """AP of candidates after training each; implements `search.scores.Scores`.

    A candidate in the journal is neither trained nor evaluated again. Of several hosts the primary
    alone needs the detections.

    Attributes:
      name: name of the search in the journal.
      detections_of: function from a code to the candidate's detections on the split in COCO's
        result format; it trains the candidate first, or reads what is stored.
      split: split that the scores come from.
      journal: the record of scores.
      bootstrap_samples: resamplings of the images behind a score's interval.
      seed: seed of the bootstrap.
      prepare: called with the codes whose detections will be asked for, such as to train them at
        once on several machines.

    Raises:
      UserError: the split has no object to detect.
    """

    name: str
    detections_of: Callable[[Code], list[dict]]
    split: DetectionSource
    journal: Journal
    bootstrap_samples: int = 200
    seed: int = 0
    prepare: Callable[[Sequence[Code]], None] = lambda codes: None

    def __post_init__(self):
        counted = self._ground_truth.num_counted_in(self.split.image_ids)
        if not counted[..., 0].any():
            problem = "the split has no object that AP counts"
            raise UserError("scoring", self.name, problem, "use other images")

    @functools.cached_property
    def _ground_truth(self):
        return GroundTruth.from_source(self.split)

    def score(self, codes: Sequence[Code]) -> list[float]:
        """Train every code that is not in the journal; return their AP on the split."""
        codes = [tuple(code) for code in codes]
        missing = [
            code for code in dict.fromkeys(codes) if self.journal.get(self.name, code, 0) is None
        ]
        for code in self._match_all(missing):
            self.journal.add(self.name, code, Score(**team.decide(self._score, code)))
        return [self.journal.get(self.name, code, 0).value for code in codes]

    def effort(self) -> dict[str, int]:
        """Return `evaluated` and `image_passes`, see `Journal.effort`; trainings not counted."""
        return self.journal.effort(self.name)

    def draws(self, codes: Sequence[Code]) -> np.ndarray:
        """Return the AP of every code on the same resampled images: [codes, samples]."""
        codes = [tuple(code) for code in codes]
        list(self._match_all([code for code in codes if code not in self._tables]))
        return team.decide(self._draws, codes)

    def _draws(self, codes):
        return np.stack([self._tables[code].bootstrap_ap(self._weights) for code in codes])

    @functools.cached_property
    def _tables(self):
        """The matches of the candidates that were asked for, by code."""
        return {}

    def _match_all(self, codes):
        """Yield codes, each as soon as its detections are matched."""
        self.prepare(codes)
        results = map(self.detections_of, codes)
        for code, detections in zip(codes, results, strict=True):
            team.decide(self._match, code, detections)
            self._tables.setdefault(code, None)  # on the other hosts
            yield code

    def _match(self, code, detections):
        self._tables[code] = self._table(detections)

    @functools.cached_property
    def _weights(self):
        num_images = len(self.split.image_ids)
        return bootstrap_weights(num_images, self.bootstrap_samples, self.seed)

    def _table(self, results) -> MatchTable:
        return _match_table(self._ground_truth, self.split, results)

    def _score(self, code):
        """Return the fields of a code's score."""
        return dataclasses.asdict(_score_of(self._tables[code], self._weights))


def score_detections(split: DetectionSource, results: list[dict], samples: int, seed: int) -> Score:
    """Return the score of detections on a split.

    Args:
      split: the split.
      results: the detections, in COCO's result format.
      samples: resamplings of the images behind the interval.
      seed: seed of the resamplings.
    """
    weights = bootstrap_weights(len(split.image_ids), samples, seed)
    return _score_of(_match_table(GroundTruth.from_source(split), split, results), weights)


def _match_table(ground_truth, split, results) -> MatchTable:
    detections = detections_from_results(results, split.category_ids, split.image_ids)
    (table,) = match_tables(ground_truth, detections, split.image_ids)
    return table


def _score_of(table, weights) -> Score:
    ap = table.metrics()["AP"]
    interval = confidence_interval(table.bootstrap_ap(weights), ap)
    # No mini-batches: the split as a whole.
    return Score(ap, interval, num_batches=0, num_images=weights.shape[-1])
