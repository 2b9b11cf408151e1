"""A training as one frozen value."""

import dataclasses
import pathlib
from collections.abc import Callable

from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.models.build import Model
from crnas_jax.runtime.options import check_counts, check_not_negative, check_positive
from crnas_jax.training.optimizer import OptimizerOptions


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a training.

    Attributes:
      epochs: passes over the split.
      batch_size: images in a global batch.
      optimizer: settings of the optimiser.
      accumulate: parts that a batch is cut into; only one of them is in memory at a time.
      seed: seed of initialisation, paths, samples and order.
      checkpoint_seconds: least time between checkpoints.
      log_every: steps between log entries.
      num_devices: number of devices; all when None.
    """

    epochs: float
    batch_size: int
    optimizer: OptimizerOptions = OptimizerOptions()
    accumulate: int = 1
    seed: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 10
    num_devices: int | None = None

    def __post_init__(self):
        check_positive(self, "epochs")
        check_counts(self, "batch_size", "accumulate", "log_every")
        check_counts(self, "seed", least=0)
        check_not_negative(self, "checkpoint_seconds")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingJob:
    """One training: everything that `loop.train` needs except where to write.

    Attributes:
      name: name of the training, and of its folder in the working folder.
      model: network or supernet to train.
      source: training split.
      to_row: function from a record of the split to a row of a batch (`data.loader.batches`).
      options: settings.
      init_from: folder of the weights to start from (`export.weights`); "" for fresh ones.
    """

    name: str
    model: Model
    source: DetectionSource | ClassificationSource
    to_row: Callable
    options: TrainOptions
    init_from: str | pathlib.Path = ""
