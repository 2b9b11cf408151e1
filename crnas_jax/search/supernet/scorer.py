"""From subnets to AP: what the searches call, with every score journaled."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import (
    MatchTable,
    bootstrap,
    flags,
    in_threads,
    interval,
)
from crnas_jax.evaluation.matching import GroundTruth, match
from crnas_jax.models.build import Detector
from crnas_jax.parallel.mesh import make_mesh, put_batch, replicated
from crnas_jax.runtime import interruption
from crnas_jax.search.cache import PartialResults
from crnas_jax.search.journal import Journal, Score
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.custom import Foreign
from crnas_jax.search.supernet.evaluator import MOST, shared_evaluator
from crnas_jax.training.logging import Progress

# Statistics subnets are scored with.
BN_RULES = ("recalibrate", "batch", "running")
# Subnets whose results go to disk together: what a search that is killed repeats at most.
CHUNK = MOST
_KEPT = "what was found so far is kept"


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How subnets are scored.

    Attributes:
      batch_size: images in a mini-batch.
      size: resizing rule.
      batches: mini-batches of the validation split to score on (the paper's c); all when None.
      bn: one of `BN_RULES`: on training images, of the mini-batch, the supernet's averages.
      calibration_images: for `recalibrate`.
      chunk: most subnets in a compiled call; what fits the memory when None.
      slots: see `SubnetEvaluator`.
      samples: of the bootstrap over images.
      seed: of the order of the validation images, the calibration images and the bootstrap.
      devices: how many to use; all when None.
    """

    batch_size: int
    size: ImageSize
    batches: int | None = None
    bn: str = "recalibrate"
    calibration_images: int = 512
    chunk: int | None = None
    slots: int = 0
    samples: int = 200
    seed: int = 0
    devices: int | None = None

    def calibration(self, train_source) -> tuple[loader.Plan, int]:
        """Which training images each mini-batch for `recalibrate` has, and how many there are, one
        at least.
        """
        plan = loader.Plan(train_source.sizes, self.batch_size, self.seed)
        return plan, min(max(self.calibration_images // self.batch_size, 1), len(plan))

    def plan(self, val_source) -> tuple[loader.Plan, int]:
        """Which validation images each mini-batch has, and how many mini-batches count."""
        plan = loader.Plan(val_source.sizes, self.batch_size, self.seed, whole=True)
        return plan, min(self.batches or len(plan), len(plan))

    def require_objects(self, val_source, truth: GroundTruth) -> None:
        """Raises UserError if the mini-batches have no object that counts: AP would be none."""
        plan, batches = self.plan(val_source)
        if not truth.counted_in(val_source.image_ids[plan.first(batches)]).any():
            problem = f"no object in the {batches} mini-batches of data.val"
            raise UserError("config", "search.batches", problem, "use more, or other images")


class SubnetScorer:
    """Scores subnets by their AP with inherited weights."""

    def __init__(
        self,
        detector: Detector | Foreign,
        variables: PyTree,
        train_source,
        val_source,
        options: ScoreOptions,
        journal: Journal,
        folder: str | pathlib.Path,
    ):
        """Args: the trained supernet, splits for statistics and scores, the record, and a folder
        for what is not yet scored and for statistics.

        Raises:
          UserError: `recalibrate` of a network of which nothing is known; no object to be found.
        """
        if options.bn == "recalibrate" and isinstance(detector, Foreign):
            problem = "recalibrate, and this network does not give its statistics"
            raise UserError("scoring", "bn", problem, "use running")
        self._mesh = make_mesh(options.batch_size, options.devices)
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._train, self._val, self._options = train_source, val_source, options
        self.journal, self._folder = journal, pathlib.Path(folder)
        self._evaluator = shared_evaluator(detector, self._mesh, options.chunk, options.slots)
        self._truth = GroundTruth.of(val_source)
        options.require_objects(val_source, self._truth)
        self._plan, self.batches = options.plan(val_source)

    def image_ids(self, batches: int) -> np.ndarray:
        """Of the first mini-batches."""
        return self._val.image_ids[self._plan.first(batches)]

    def objects(self, batches: int) -> int:
        """Objects that count in the first mini-batches."""
        return int(self._truth.counted_in(self.image_ids(batches))[..., 0].sum())

    def score(
        self,
        search: str,
        codes: Sequence[tuple],
        choices_of: Callable,
        label: str = "",
        batches: int | None = None,
        keep: bool = False,
    ) -> list[Score]:
        """Scores of all codes; those in the journal are not scored again.

        Every image to score on is read once for all codes (those for statistics once for `CHUNK` of
        them). What is found is on disk before the next chunk of subnets runs, so a crash loses no
        more than the chunk in flight.

        Args:
          search: the codes' name in the journal.
          codes: what is scored.
          choices_of: from (code, mini-batch) to the path to run on it; paths may differ between
            mini-batches only with `bn` other than `recalibrate`.
          label: for people.
          batches: how many of the first mini-batches; all that the options allow when None.
          keep: the matches, for more mini-batches or for `draws`; until `clear`.

        Raises:
          ValueError: more mini-batches than there are, or the first of them hold no object.
          Stopped: somebody asked to stop.
        """
        codes, batches = [tuple(code) for code in codes], batches or self.batches
        if batches > self.batches:
            raise ValueError(f"{batches} mini-batches of {self.batches}")
        missing = [c for c in dict.fromkeys(codes) if self.journal.get(search, c, batches) is None]
        if missing:
            began = time.monotonic()
            kept = self._matches(search, missing, choices_of, label or search, batches)
            weights = self._weights(batches)
            found = in_threads(functools.partial(self._score, kept, batches, weights), missing)
            seconds = round((time.monotonic() - began) / len(missing), 3)
            for code, score in zip(missing, found, strict=True):
                self.journal.add(search, code, score, seed=self._options.seed, seconds=seconds)
            if not keep:
                self.clear(search)
        return [self.journal.get(search, code, batches) for code in codes]

    def draws(
        self, search: str, codes: Sequence[tuple], choices_of: Callable, batches: int
    ) -> np.ndarray:
        """AP of every code on the same resampled images: [codes, samples]; kept for good, so that
        a search that is over can be followed again.
        """
        options = self._options
        kept_in = self._kept("draws", f"{search} {batches} {options.samples} {options.seed}")
        draws = kept_in.draws()
        missing = [code for code in codes if code not in draws]
        if missing:
            kept = self._matches(search, missing, choices_of, search, batches)
            weights = self._weights(batches)
            new = in_threads(lambda code: self._table(kept, code, batches).ap(weights), missing)
            kept_in.add_draws(missing, new)
            draws |= dict(zip(missing, new, strict=True))
        return np.stack([draws[code] for code in codes])

    def clear(self, search: str) -> None:
        """Removes the matches of a search, when all it needs is in the journal."""
        self._kept("matches", search).clear()

    def _kept(self, what, key):
        return PartialResults(self._folder / what, f"{self.journal.key} {key}")

    def _weights(self, batches):
        return bootstrap(len(self.image_ids(batches)), self._options.samples, self._options.seed)

    def _table(self, kept, code, batches):
        parts = [kept[code, batch] for batch in range(batches)]
        return MatchTable.of(self._truth, parts, self.image_ids(batches))

    def _score(self, kept, batches, weights, code):
        table = self._table(kept, code, batches)
        ap = table.metrics()["AP"]
        return Score(ap, interval(table.ap(weights), ap), batches, len(table.truths))

    def _matches(self, search, codes, choices_of, label, batches):
        """By (code, mini-batch) what became of the detections; works out what is not kept."""
        partial = self._kept("matches", search)
        kept = partial.matches()
        todo = [[code for code in codes if (code, b) not in kept] for b in range(batches)]
        first = next((b for b in range(batches) if todo[b]), batches)
        if first == batches:
            return kept
        stats, bn = None, self._options.bn
        if bn == "recalibrate":
            stats, bn = self._statistics(codes, choices_of, label), "batch"
        progress = Progress(label, batches, first, "mini-batch")
        batches_read = self._batches(self._val, self._plan, first, batches)
        for index, (batch, device) in enumerate(batches_read, first):
            some = todo[index]
            if some:
                found = self._evaluator.detect_in_chunks(
                    self._variables,
                    device,
                    [choices_of(code, index) for code in some],
                    None if stats is None else [stats[code] for code in some],
                    bn,
                )
                for codes_done, rows in self._matched(batch, found, some):
                    partial.add_matches(index, codes_done, rows)
                    kept |= {(code, index): row for code, row in zip(codes_done, rows, strict=True)}
                    interruption.stop_if_requested(f"{label}: {_KEPT}")
            progress.update(index + 1, subnets=len(codes))
        progress.close()
        return kept

    def _matched(self, batch, chunks, codes):
        """Codes and their rows, about `CHUNK` at a time."""
        truth = self._truth.batch(batch["image_id"])
        done, rows = [], []
        for positions, found in chunks:
            # Flags and scores leave the device, boxes do not.
            own = (found[name] for name in ("boxes", "valid", "labels"))
            matches = match(*own, truth, batch["scale"])
            kept = {name: found[name] for name in ("scores", "labels", "valid")}
            kept, matches = jax.device_get((kept, matches))
            for row, position in enumerate(positions):
                own = (jax.tree.map(lambda leaf, r=row: leaf[r], tree) for tree in (kept, matches))
                rows.append(flags(*own, batch["image_id"], batch["weight"]))
                done.append(codes[position])
            if len(done) >= CHUNK:
                yield done, rows
                done, rows = [], []
        if done:
            yield done, rows

    def _statistics(self, codes, choices_of, label):
        """Recalibrated statistics of every code, on the host; kept for other searches too, so what
        they are found by is the path.
        """
        options = self._options
        structure = jax.tree.structure(self._variables["batch_stats"])
        choices = {code: choices_of(code, 0) for code in codes}
        path_of = {
            code: tuple(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(choice)]))
            for code, choice in choices.items()
        }
        # Their images are drawn by the seed.
        kept_in = self._kept("statistics", options.seed)
        kept = kept_in.statistics()
        plan, number = options.calibration(self._train)
        # Neighbours share most.
        missing = sorted(code for code in codes if path_of[code] not in kept)
        progress = Progress(f"{label}, statistics", len(codes), len(codes) - len(missing), "subnet")
        for start in range(0, len(missing), CHUNK):
            some = missing[start : start + CHUNK]
            batches = (device for _, device in self._batches(self._train, plan, 0, number))
            own = [choices[code] for code in some]
            stats = calibrate(self._evaluator, self._variables, batches, own)
            leaves, paths = [jax.tree.leaves(one) for one in stats], [path_of[c] for c in some]
            kept_in.add_statistics(paths, leaves)
            kept |= dict(zip(paths, leaves, strict=True))
            progress.update(len(codes) - len(missing) + start + len(some))
            interruption.stop_if_requested(f"{label}: {_KEPT}")
        progress.close()
        return {code: jax.tree.unflatten(structure, kept[path_of[code]]) for code in codes}

    def _batches(self, source, plan, start, stop):
        rows = DetectionRows(self._options.size)
        for batch in loader.batches(source, plan, rows, start=start, stop=stop):
            yield batch, put_batch(self._mesh, batch)
