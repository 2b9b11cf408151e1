"""From subnets to AP: what the searches call, with every score journaled."""

import dataclasses
import math
import pathlib
import time

import jax
from jaxtyping import PyTree

from crnas_jax import interruption
from crnas_jax.data import loader
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator, compact, to_results
from crnas_jax.models.build import Detector
from crnas_jax.search.bn_calibration import calibrate
from crnas_jax.search.evaluator import SubnetEvaluator
from crnas_jax.search.journal import Journal
from crnas_jax.search.partial import PartialResults
from crnas_jax.training.logging import Progress
from crnas_jax.training.mesh import make_mesh, put_batch, replicated

# Statistics subnets are scored with.
BN_RULES = ("recalibrate", "batch", "running")


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How subnets are scored.

    Attributes:
      batch_size: images in a mini-batch.
      size: resizing rule.
      batches: mini-batches of the validation split to score on (the paper's c); all when None.
      bn: one of `BN_RULES`: on training images, of the mini-batch, the supernet's averages.
      calibration_images: for `recalibrate`.
      chunk: subnets in a compiled call.
      seed: of completions and of the calibration images.
      devices: how many to use; all when None.
    """

    batch_size: int
    size: ImageSize
    batches: int | None = None
    bn: str = "recalibrate"
    calibration_images: int = 512
    chunk: int = 16
    seed: int = 0
    devices: int | None = None


class SubnetScorer:
    """Scores codes of one search by the AP of their subnets with inherited weights."""

    def __init__(
        self,
        detector: Detector,
        variables: PyTree,
        train_source,
        val_source,
        options: ScoreOptions,
        journal: Journal,
        folder: str | pathlib.Path,
    ):
        """Args: the trained supernet, splits for statistics and scores, the record, and a folder
        for results not yet scored.

        Raises:
          UserError: `recalibrate` of a network that has no `moments`.
        """
        if options.bn == "recalibrate" and not hasattr(detector, "moments"):
            problem = "recalibrate, and this network does not give its statistics"
            raise UserError("scoring", "bn", problem, "use running")
        self._mesh = make_mesh(options.batch_size, options.devices)
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._train, self._val, self._options = train_source, val_source, options
        self._journal, self._folder = journal, folder
        self._evaluator = SubnetEvaluator(detector, self._mesh, options.chunk)
        self._coco = CocoEvaluator.of(val_source)

    def score(self, search: str, codes: list[tuple], choices_of, label: str = "") -> list[float]:
        """AP of every code; those in the journal are not scored again.

        Every image is read once for all codes. What is found is on disk before the next chunk of
        subnets runs, so a crash loses no more than the chunk in flight.

        Args:
          search: the codes' name in the journal.
          codes: what is scored.
          choices_of: from (code, mini-batch) to the path to run on it; paths may differ between
            mini-batches only with `bn` other than `recalibrate`.
          label: for people.

        Raises:
          UserError: the mini-batches hold no object.
          Stopped: somebody asked to stop.
        """
        codes = [tuple(code) for code in codes]
        missing = [code for code in codes if self._journal.get(search, code) is None]
        if missing:
            partial = PartialResults(self._folder, f"{self._journal.key} {search}")
            began = time.monotonic()
            batches, image_ids = self._detect(missing, choices_of, partial, label or search)
            seconds = round((time.monotonic() - began) / len(missing), 3)
            for code in missing:
                found = [
                    result
                    for batch in batches
                    for result in to_results(batch[code], self._val.category_ids)
                ]
                ap = self._coco.evaluate(found, image_ids).metrics["AP"]
                if not math.isfinite(ap):
                    raise UserError(
                        "config", "search.batches", "no object in these images", "score on more"
                    )
                details = {"images": len(image_ids), "seed": self._options.seed}
                self._journal.add(search, code, ap, **details, seconds=seconds)
                interruption.stop_if_requested(f"{label}: what was found so far is kept")
            partial.clear()
        return [self._journal.get(search, code) for code in codes]

    def _detect(self, codes, choices_of, partial, label):
        """For every validation mini-batch what each code found, and the ids of all images."""
        options = self._options
        stats, bn = None, options.bn
        if options.bn == "recalibrate":
            stats, bn = self._statistics(codes, choices_of, partial, label), "batch"
        plan = loader.Plan(self._val.sizes, options.batch_size, seed=None)
        number = len(plan) if options.batches is None else min(options.batches, len(plan))
        kept = partial.detections()
        todo = [[code for code in codes if (code, batch) not in kept] for batch in range(number)]
        first = next((batch for batch in range(number) if todo[batch]), number)
        progress = Progress(label, number, first, "mini-batch")
        for index, (batch, device) in enumerate(
            self._batches(self._val, plan, first, number), first
        ):
            for some in self._chunks(todo[index]):
                detections = self._evaluator.detect(
                    self._variables,
                    device,
                    [choices_of(code, index) for code in some],
                    None if stats is None else [stats[code] for code in some],
                    bn,
                )
                found = [
                    compact({name: a[i] for name, a in detections.items()}, batch)
                    for i in range(len(some))
                ]
                partial.add_detections(index, some, found)
                kept |= {(code, index): one for code, one in zip(some, found, strict=True)}
                interruption.stop_if_requested(f"{label}: what was found so far is kept")
            progress.update(index + 1, subnets=len(codes))
        progress.close()
        batches = [{code: kept[code, batch] for code in codes} for batch in range(number)]
        indices = [i for batch in range(number) for i in plan[batch].indices if i >= 0]
        return batches, self._val.image_ids[indices].tolist()

    def _statistics(self, codes, choices_of, partial, label):
        """Recalibrated statistics of every code, on the host."""
        options = self._options
        structure = jax.tree.structure(self._variables["batch_stats"])
        kept = partial.statistics()
        plan = loader.Plan(self._train.sizes, options.batch_size, options.seed)
        number = min(max(options.calibration_images // options.batch_size, 1), len(plan))
        missing = [code for code in codes if code not in kept]
        progress = Progress(f"{label}, statistics", len(codes), len(codes) - len(missing), "subnet")
        for some in self._chunks(missing):
            batches = (device for _, device in self._batches(self._train, plan, 0, number))
            choices = [choices_of(code, 0) for code in some]
            stats = jax.device_get(calibrate(self._evaluator, self._variables, batches, choices))
            leaves = [jax.tree.leaves(one) for one in stats]
            partial.add_statistics(some, leaves)
            kept |= dict(zip(some, leaves, strict=True))
            progress.update(sum(code in kept for code in codes))
            interruption.stop_if_requested(f"{label}: what was found so far is kept")
        progress.close()
        return {code: jax.tree.unflatten(structure, kept[code]) for code in codes}

    def _batches(self, source, plan, start, stop):
        rows = DetectionRows(self._options.size)
        for batch in loader.batches(source, plan, rows, start=start, stop=stop):
            yield batch, put_batch(self._mesh, batch)

    def _chunks(self, codes):
        for start in range(0, len(codes), self._options.chunk):
            yield codes[start : start + self._options.chunk]
