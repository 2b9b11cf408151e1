"""From subnets to AP: what the searches call, with every score journaled."""

import dataclasses
import math
import time

import jax
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.transforms import ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator, to_results
from crnas_jax.models.build import Detector
from crnas_jax.search.bn_calibration import calibrate
from crnas_jax.search.evaluator import SubnetEvaluator
from crnas_jax.search.journal import Journal
from crnas_jax.training.logging import Progress
from crnas_jax.training.mesh import make_mesh, put_batch, replicated


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How subnets are scored.

    Attributes:
      batch_size: images in a mini-batch.
      size: resizing rule.
      batches: mini-batches of the validation split to score on (the paper's c); all when None.
      bn: `recalibrate` (on training images), `batch` (of the mini-batch) or `running`.
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
    ):
        """Args: the trained supernet, splits for statistics and scores, the record."""
        self._mesh = make_mesh(options.batch_size, options.devices)
        self._variables = jax.device_put(variables, replicated(self._mesh))
        self._train, self._val, self._options, self._journal = (
            train_source,
            val_source,
            options,
            journal,
        )
        self._evaluator = SubnetEvaluator(detector, self._mesh, options.chunk)
        self._coco = CocoEvaluator(val_source.coco)

    def score(self, search: str, codes: list[tuple], choices_of, label: str = "") -> list[float]:
        """AP of every code; those in the journal are not scored again.

        Args:
          search: the codes' name in the journal.
          codes: what is scored.
          choices_of: from (code, mini-batch) to the path to run on it; paths may differ between
            mini-batches only with `bn` other than `recalibrate`.
          label: for people.
        """
        # A chunk at a time, so that a crash loses no more than the chunk in flight.
        missing = [code for code in codes if self._journal.get(search, code) is None]
        progress = Progress(label or search, len(codes), len(codes) - len(missing), "subnet")
        for start in range(0, len(missing), self._options.chunk):
            some = missing[start : start + self._options.chunk]
            began = time.monotonic()
            results, image_ids = self._detect(some, choices_of)
            seconds = round((time.monotonic() - began) / len(some), 3)
            for code, found in zip(some, results, strict=True):
                score = self._coco.evaluate(found, image_ids).metrics["AP"]
                if not math.isfinite(score):
                    raise UserError(
                        "config", "search.batches", "no object in these images", "score on more"
                    )
                self._journal.add(
                    search,
                    code,
                    score,
                    images=len(image_ids),
                    seed=self._options.seed,
                    seconds=seconds,
                )
            done = len(codes) - len(missing) + start + len(some)
            scored = (self._journal.get(search, code) for code in codes)
            progress.update(done, best=max(score for score in scored if score is not None))
        progress.close()
        return [self._journal.get(search, code) for code in codes]

    def _batches(self, source, plan, number):
        batches = loader.batches(
            source, plan, self._options.size, max_objects=1, flip_seed=None, stop=number
        )
        return ((batch, put_batch(self._mesh, batch)) for batch in batches)

    def _detect(self, codes, choices_of):
        options = self._options
        stats, bn = None, "batch" if options.bn == "recalibrate" else options.bn
        if options.bn == "recalibrate":
            plan = loader.Plan(self._train.sizes, options.batch_size, options.seed)
            number = min(max(options.calibration_images // options.batch_size, 1), len(plan))
            batches = (device for _, device in self._batches(self._train, plan, number))
            stats = calibrate(
                self._evaluator, self._variables, batches, [choices_of(code, 0) for code in codes]
            )
        plan = loader.Plan(self._val.sizes, options.batch_size, seed=None)
        number = len(plan) if options.batches is None else min(options.batches, len(plan))
        results, image_ids = [[] for _ in codes], []
        for index, (batch, device) in enumerate(self._batches(self._val, plan, number)):
            choices = [choices_of(code, index) for code in codes]
            found = self._evaluator.detect(self._variables, device, choices, stats, bn)
            image_ids += batch["image_id"][batch["weight"] > 0].tolist()
            for position, result in enumerate(results):
                one = {name: values[position] for name, values in found.items()}
                result += to_results(one, batch, self._val.category_ids)
        return results, image_ids
