"""From subnets to AP with inherited weights, every score journaled."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.source import DetectionSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import (
    MatchTable,
    bootstrap_weights,
    confidence_interval,
    map_in_threads,
    match_records,
)
from crnas_jax.evaluation.coco import require_finite
from crnas_jax.evaluation.matching import GroundTruth, match
from crnas_jax.models.build import Detector
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import make_mesh, put_batch, replicated
from crnas_jax.runtime import interruption, team
from crnas_jax.runtime.options import check_choice, check_counts
from crnas_jax.runtime.progress import Progress
from crnas_jax.search.cache import ResultCache
from crnas_jax.search.journal import Journal, Score
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.custom import CustomModel
from crnas_jax.search.supernet.evaluator import MAX_SUBNETS, shared_evaluator

# Statistics that subnets may be scored with.
BN_RULES = ("recalibrate", "batch", "running")
# Subnets with results that go to disk together: what a killed search repeats at most.
CHUNK = MAX_SUBNETS
_RESUMABLE = "finished results are saved"


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How subnets are scored.

    Attributes:
      batch_size: images in a mini-batch.
      size: resize rule.
      num_batches: number of first mini-batches of the validation split to score on (the paper's
        c); 0 for all.
      bn: one of `BN_RULES`: statistics from training images, from the mini-batch, or the
        supernet's averages.
      calibration_images: training images for `recalibrate`.
      max_subnets_per_call: most subnets in a compiled call; 0 for what fits the memory.
      num_slots: see `SubnetEvaluator`.
      bootstrap_samples: resamplings of the images behind a score's interval.
      seed: seed of the order of the validation images, the calibration images and the bootstrap.
      num_devices: number of devices; all when None.
    """

    batch_size: int
    size: ImageSize
    num_batches: int = 0
    bn: str = "recalibrate"
    calibration_images: int = 512
    max_subnets_per_call: int = 0
    num_slots: int = 0
    bootstrap_samples: int = 200
    seed: int = 0
    num_devices: int | None = None

    def __post_init__(self):
        check_choice(self, "bn", BN_RULES)
        check_counts(self, "batch_size", "calibration_images", "bootstrap_samples")
        check_counts(self, "num_batches", "max_subnets_per_call", "num_slots", "seed", least=0)

    def calibration_plan(self, train_source: DetectionSource) -> tuple[loader.Plan, int]:
        """Return the plan of training images for `recalibrate`, and how many mini-batches count.

        At least one counts.
        """
        plan = loader.Plan(train_source.sizes, self.batch_size, self.seed)
        return plan, plan.num_batches(self.calibration_images)

    def score_plan(self, val_source: DetectionSource) -> tuple[loader.Plan, int]:
        """Return the plan of validation images, and how many mini-batches count."""
        plan = loader.Plan(val_source.sizes, self.batch_size, self.seed, keep_all=True)
        return plan, min(self.num_batches or len(plan), len(plan))

    def require_objects(self, val_source: DetectionSource, ground_truth: GroundTruth) -> None:
        """Raise UserError if the mini-batches have no object that counts: AP would be undefined."""
        plan, num_batches = self.score_plan(val_source)
        image_ids = val_source.image_ids[plan.first_indices(num_batches)]
        if not ground_truth.num_counted_in(image_ids).any():
            problem = f"no object in the {num_batches} mini-batches of data.val"
            raise UserError("config", "search.batches", problem, "use more, or other images")


class SubnetScorer:
    """Score subnets by their AP with inherited weights.

    Attributes:
      journal: the record of scores.
      num_batches: number of mini-batches there are to score on.
    """

    def __init__(
        self,
        detector: Detector | CustomModel,
        variables: PyTree,
        train_source: DetectionSource,
        val_source: DetectionSource,
        options: ScoreOptions,
        journal: Journal,
        folder: str | pathlib.Path,
    ):
        """Prepare the scorer.

        Args:
          detector: the supernet.
          variables: its trained banks.
          train_source: split for recalibrated statistics.
          val_source: split that scores come from.
          options: how subnets are scored.
          journal: the record of scores.
          folder: folder for statistics and for matches that are not scores yet.

        Raises:
          UserError: `recalibrate` with a custom network, which gives no statistics; no object to
            detect.
        """
        self._mesh = make_mesh(options.batch_size, options.num_devices)
        self._variables = hosts.put(variables, replicated(self._mesh))
        self._train, self._val, self._options = train_source, val_source, options
        self.journal, self._folder = journal, pathlib.Path(folder)
        self._evaluator = shared_evaluator(
            detector, self._mesh, options.max_subnets_per_call, options.num_slots
        )
        if options.bn == "recalibrate" and not self._evaluator.gives_statistics:
            problem = "recalibrate, and this network does not give its statistics"
            raise UserError("scoring", "bn", problem, "use running")
        self._ground_truth = GroundTruth.from_source(val_source)
        options.require_objects(val_source, self._ground_truth)
        self._plan, self.num_batches = options.score_plan(val_source)

    def image_ids(self, num_batches: int) -> np.ndarray:
        """Return the ids of the images in the first mini-batches."""
        return self._val.image_ids[self._plan.first_indices(num_batches)]

    def num_objects(self, num_batches: int) -> int:
        """Count the objects in the first mini-batches that AP counts."""
        counts = self._ground_truth.num_counted_in(self.image_ids(num_batches))
        return int(counts[..., 0].sum())

    def score(
        self,
        search: str,
        codes: Sequence[tuple],
        choice_of: Callable,
        label: str = "",
        num_batches: int | None = None,
        keep_matches: bool = False,
    ) -> list[Score]:
        """Score all codes; those in the journal are not scored again.

        Every image to score on is read once for all codes (images for statistics once for `CHUNK`
        codes). Results are on disk before the next chunk of subnets runs, so a crash loses no more
        than the chunk in flight.

        Args:
          search: name of the search in the journal.
          codes: codes to score.
          choice_of: function from (code, mini-batch) to the path to run on it; paths may differ
            between mini-batches only with `bn` other than `recalibrate`.
          label: text shown as progress; the search's name when empty.
          num_batches: number of first mini-batches; all that the options allow when None.
          keep_matches: keep the matches, for more mini-batches or for `draws`, until `clear`.

        Raises:
          ValueError: there are fewer mini-batches.
          Stopped: a stop was requested.
        """
        codes, num_batches = [tuple(code) for code in codes], num_batches or self.num_batches
        if num_batches > self.num_batches:
            raise ValueError(f"{num_batches} mini-batches of {self.num_batches}")
        missing = [
            code
            for code in dict.fromkeys(codes)
            if self.journal.get(search, code, num_batches) is None
        ]
        if missing:
            start = time.monotonic()
            records = self._records(search, missing, choice_of, label or search, num_batches)
            scores = self._of_tables(_score, records, missing, num_batches)
            seconds = round((time.monotonic() - start) / len(missing), 3)
            for code, fields in zip(missing, scores, strict=True):
                score = Score(**fields, num_batches=num_batches)
                self.journal.add(search, code, score, seed=self._options.seed, seconds=seconds)
            if not keep_matches:
                self.clear(search)
        return [self.journal.get(search, code, num_batches) for code in codes]

    def draws(
        self, search: str, codes: Sequence[tuple], choice_of: Callable, num_batches: int
    ) -> np.ndarray:
        """Return the AP of every code on the same resampled images: [codes, samples].

        Draws stay on disk for good, so that a finished search can be replayed.
        """
        options = self._options
        key = f"{search} {num_batches} {options.bootstrap_samples} {options.seed}"
        cache = self._cache("draws", key)
        draws = cache.draws()
        missing = [code for code in codes if code not in draws]
        if missing:
            records = self._records(search, missing, choice_of, search, num_batches)
            new_draws = self._of_tables(MatchTable.bootstrap_ap, records, missing, num_batches)
            cache.add_draws(missing, new_draws)
            draws |= dict(zip(missing, new_draws, strict=True))
        return np.stack([draws[code] for code in codes])

    def clear(self, search: str) -> None:
        """Remove the matches of a search, when all it needs is in the journal."""
        self._cache("matches", search).clear()

    def _cache(self, kind, key):
        return ResultCache(self._folder / kind, f"{self.journal.key} {key}")

    def _bootstrap_weights(self, num_batches):
        num_images, options = len(self.image_ids(num_batches)), self._options
        return bootstrap_weights(num_images, options.bootstrap_samples, options.seed)

    def _table(self, records, code, num_batches):
        parts = [records[code, batch] for batch in range(num_batches)]
        return MatchTable.from_records(self._ground_truth, parts, self.image_ids(num_batches))

    def _of_tables(self, function, records, codes, num_batches):
        """Return the function of each code's match table and the bootstrap's weights."""
        weights = self._bootstrap_weights(num_batches)

        def run(code):
            return function(self._table(records, code, num_batches), weights)

        return team.decide(map_in_threads, run, codes)

    def _records(self, search, codes, choice_of, label, num_batches):
        """Return the match records by (code, mini-batch); compute what is not cached.

        Of several hosts the primary has them, the others None in their places.
        """
        cache = self._cache("matches", search)
        records = cache.matches()
        todo = [[code for code in codes if (code, b) not in records] for b in range(num_batches)]
        first = next((b for b in range(num_batches) if todo[b]), num_batches)
        if first == num_batches:
            return records
        stats, bn = None, self._options.bn
        if bn == "recalibrate":
            stats, bn = self._statistics(codes, choice_of, label), "batch"
        progress = Progress(label, num_batches, first, "mini-batch")
        batches = self._batches(self._val, self._plan, first, num_batches)
        for index, (batch, device_batch) in enumerate(batches, first):
            batch_codes = todo[index]
            if batch_codes:
                detections = self._evaluator.detect_in_chunks(
                    self._variables,
                    device_batch,
                    [choice_of(code, index) for code in batch_codes],
                    None if stats is None else [stats[code] for code in batch_codes],
                    bn,
                )
                for chunk, rows in self._matched(batch, detections, batch_codes):
                    cache.add_matches(index, chunk, rows)
                    records |= {(code, index): r for code, r in zip(chunk, rows, strict=True)}
                    interruption.stop_if_requested(f"{label}: {_RESUMABLE}")
            progress.update(index + 1, subnets=len(codes))
        progress.close()
        return records

    def _matched(self, batch, chunks, codes):
        """Yield codes and their records, about `CHUNK` at a time."""
        batch = loader.all_rows(batch)
        ground_truth = self._ground_truth.batch(batch["image_id"])
        done, rows = [], []
        for positions, detections in chunks:
            # Flags and scores leave the device, boxes do not.
            boxes, valid, labels = (detections[name] for name in ("boxes", "valid", "labels"))
            matches = match(boxes, valid, labels, ground_truth, batch["scale"])
            scored = {name: detections[name] for name in ("scores", "labels", "valid")}
            scored, matches = hosts.fetch((scored, matches))
            require_finite(scored["scores"], f"codes {[codes[p] for p in positions]}")
            for row, position in enumerate(positions):
                trees = (
                    jax.tree.map(lambda leaf, r=row: leaf[r], tree) for tree in (scored, matches)
                )
                rows.append(match_records(*trees, batch["image_id"], batch["weight"]))
                done.append(codes[position])
            if len(done) >= CHUNK:
                yield done, rows
                done, rows = [], []
        if done:
            yield done, rows

    def _statistics(self, codes, choice_of, label):
        """Return recalibrated statistics of every code, on the host.

        They stay on disk for other searches too, so the cache finds them by the path.
        """
        options = self._options
        structure = jax.tree.structure(self._variables["batch_stats"])
        choices = {code: choice_of(code, 0) for code in codes}
        path_of = {
            code: tuple(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(choice)]))
            for code, choice in choices.items()
        }
        # The seed draws the images for statistics.
        cache = self._cache("statistics", options.seed)
        cached = cache.statistics()
        plan, num_batches = options.calibration_plan(self._train)
        # In sorted order neighbours share most blocks.
        missing = sorted(code for code in codes if path_of[code] not in cached)
        num_done = len(codes) - len(missing)
        progress = Progress(f"{label}, statistics", len(codes), num_done, "subnet")
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            batches = (device for _, device in self._batches(self._train, plan, 0, num_batches))
            chunk_choices = [choices[code] for code in chunk]
            stats = calibrate(self._evaluator, self._variables, batches, chunk_choices)
            leaves, paths = [jax.tree.leaves(tree) for tree in stats], [path_of[c] for c in chunk]
            cache.add_statistics(paths, leaves)
            cached |= dict(zip(paths, leaves, strict=True))
            progress.update(num_done + start + len(chunk))
            interruption.stop_if_requested(f"{label}: {_RESUMABLE}")
        progress.close()
        return {code: jax.tree.unflatten(structure, cached[path_of[code]]) for code in codes}

    def _batches(self, source, plan, start, stop):
        to_row = DetectionRows(self._options.size)
        for batch in loader.batches(source, plan, to_row, start=start, stop=stop):
            yield batch, put_batch(self._mesh, batch)


def _score(table, weights):
    """Return the fields of a score but for its mini-batches."""
    ap = table.metrics()["AP"]
    interval = confidence_interval(table.bootstrap_ap(weights), ap)
    return {"value": ap, "interval": interval, "num_images": len(table.num_objects)}
