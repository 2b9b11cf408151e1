"""A training as one frozen value."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, PyTree

from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.runtime.options import (
    check_below_one,
    check_counts,
    check_not_negative,
    check_positive,
)
from crnas_jax.training.optimizer import OptimizerOptions


@runtime_checkable
class Trainable(Protocol):
    """What training calls of a model: `models.build.Model`, or a custom one.

    Attributes:
      example_choice: a path for shapes; None for a stand-alone network.
    """

    example_choice: Any

    def init(self, key: Array) -> PyTree:
        """Draw fresh variables: {"params", "batch_stats"}."""

    def sample(self, seed: int, step: int) -> PyTree | None:
        """Draw the path of a step; None for a stand-alone network."""

    def losses(self, variables: PyTree, batch, choice, keys) -> tuple[dict[str, Array], PyTree]:
        """Return the training losses, and the statistics after this mini-batch."""

    def rows(self, tree: PyTree, choice) -> PyTree:
        """Find the rows of banks that a path uses (`models.supernet.banks.rows`)."""

    def trainable_mask(self, gradient: PyTree) -> PyTree | None:
        """Return which parameters a step moves, a tree of bools; None for all of them."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Settings of a training.

    Attributes:
      epochs: passes over the split.
      batch_size: images in a global batch.
      optimizer: settings of the optimiser.
      accumulate: parts that a batch is cut into; only one of them is in memory at a time.
      ema_decay: share of an exponential moving average of weights and statistics that stays at a
        step (`step.ema_share`); what is saved as the training's result is the average. 0 for none.
      seed: seed of initialisation, paths, samples and order.
      checkpoint_seconds: least time between checkpoints.
      log_every: steps between log entries.
      num_devices: number of devices; all when None.
      fsdp: devices that parameters and momentum are split over; 1 for a copy on each.
      profile: steps that the profiler traces; 0 for none.
    """

    epochs: float
    batch_size: int
    optimizer: OptimizerOptions = OptimizerOptions()
    accumulate: int = 1
    ema_decay: float = 0.0
    seed: int = 0
    checkpoint_seconds: float = 120.0
    log_every: int = 10
    num_devices: int | None = None
    fsdp: int = 1
    profile: int = 0

    def __post_init__(self):
        check_positive(self, "epochs")
        check_counts(self, "batch_size", "accumulate", "log_every", "fsdp")
        check_counts(self, "seed", "profile", least=0)
        check_not_negative(self, "checkpoint_seconds", "ema_decay")
        check_below_one(self, "ema_decay")


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
    model: Trainable
    source: DetectionSource | ClassificationSource
    to_row: Callable
    options: TrainOptions
    init_from: str | pathlib.Path = ""
