"""Scores of candidates that are each trained: what a supernet's scores are compared with."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

from jaxtyping import PyTree

from crnas_jax.checkpoint import save_variables
from crnas_jax.data.coco import category_entries
from crnas_jax.data.source import DetectionSource
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import (
    bootstrap_weights,
    confidence_interval,
    detections_from_results,
    match_tables,
)
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.predict_split import predict_split
from crnas_jax.export.detector import save_detector
from crnas_jax.export.weights import VARIABLES, initialiser
from crnas_jax.runtime.files import digest, read_json, write_json
from crnas_jax.search.journal import Journal, Score
from crnas_jax.spaces.space import Code
from crnas_jax.training.job import TrainingJob
from crnas_jax.training.loop import train


@dataclasses.dataclass(frozen=True)
class TrainedScoreOptions:
    """How trained candidates are scored.

    Attributes:
      batch_size: images in a mini-batch of the evaluation.
      size: resize rule.
      bootstrap_samples: resamplings of the images behind a score's interval.
      seed: seed of the bootstrap.
      num_devices: number of devices; all when None.
    """

    batch_size: int
    size: ImageSize
    bootstrap_samples: int = 200
    seed: int = 0
    num_devices: int | None = None


@dataclasses.dataclass(frozen=True)
class TrainedScores:
    """AP of candidates after training each; implements `search.scores.Scores`.

    Trainings run one after another. A training resumes from its last checkpoint, a trained
    candidate is not trained again, and a candidate in the journal is neither trained nor evaluated
    again.

    Attributes:
      name: name of the search in the journal.
      jobs_of: function from a code to the trainings of its candidate, in order; the last one trains
        the detector that is scored. The names of jobs must tell all candidates apart.
      split: split that the scores come from.
      options: how trained candidates are scored.
      journal: the record of scores.
      folder: receives a folder for each job: checkpoints, the detector, and its detections on the
        split.

    Raises:
      UserError: the split has no object to detect.
    """

    name: str
    jobs_of: Callable[[Code], Sequence[TrainingJob]]
    split: DetectionSource
    options: TrainedScoreOptions
    journal: Journal
    folder: pathlib.Path

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
        for code in dict.fromkeys(codes):
            if self.journal.get(self.name, code, 0) is None:
                self.journal.add(self.name, code, self._score(code))
        return [self.journal.get(self.name, code, 0).value for code in codes]

    def effort(self) -> dict[str, int]:
        """Return `evaluated` and `image_passes`, see `Journal.effort`; trainings not counted."""
        return self.journal.effort(self.name)

    def _score(self, code):
        results = self._results(self.jobs_of(code))
        image_ids = self.split.image_ids
        detections = detections_from_results(results, self.split.category_ids, image_ids)
        (table,) = match_tables(self._ground_truth, detections, image_ids)
        ap, options = table.metrics()["AP"], self.options
        weights = bootstrap_weights(len(image_ids), options.bootstrap_samples, options.seed)
        interval = confidence_interval(table.bootstrap_ap(weights), ap)
        # No mini-batches: the split as a whole.
        return Score(ap, interval, num_batches=0, num_images=len(image_ids))

    def _results(self, jobs):
        """Return a candidate's detections on the split in COCO's format; train it first."""
        *earlier_jobs, job = jobs
        # Another split or size has other detections.
        key = digest(self.split.digest, repr(self.options.size))
        file = self.folder / job.name / f"detections-{key}.json"
        if not file.exists():
            for earlier_job in earlier_jobs:
                variables = self._train(earlier_job)
                save_variables(self.folder / earlier_job.name / VARIABLES, variables)
            variables, options = self._train(job), self.options
            categories = category_entries(job.source.category_ids, job.source.class_names)
            save_detector(self.folder / job.name, job.model, variables, options.size, categories)
            results = predict_split(
                job.model,
                variables,
                self.split,
                options.size,
                options.batch_size,
                options.num_devices,
            )
            write_json(file, results)
        return read_json(file)

    def _train(self, job: TrainingJob) -> PyTree:
        """Return the trained variables; a finished training is restored from its checkpoint."""
        return train(job, self.folder / job.name, initialiser(job.model, job.init_from))
