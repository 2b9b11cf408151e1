"""What all supernets have in common as functions on their banks."""

import dataclasses
from typing import Any

import numpy as np

from crnas_jax.arch import Architecture
from crnas_jax.models.backbones.staged import FreezeOptions


@dataclasses.dataclass(frozen=True)
class SupernetFunctions:
    """A weight-shared backbone as functions on its banks; the interface of `build.Network`.

    Attributes:
      spec: what the supernet holds.
      remat: recompute blocks in the backward pass instead of storing their inner activations.
      freeze: what is not trained.
    """

    spec: Any
    remat: bool = False
    freeze: FreezeOptions = FreezeOptions()

    # Running averages mix all paths: a path is measured with the statistics of the mini-batch.
    default_bn = "batch"
    # Tells the descriptions of banks apart; "" for those of stages.
    kind = ""

    @property
    def arch(self) -> Architecture:
        """The network that the supernet is around."""
        return self.spec.arch

    @property
    def bank_description(self) -> dict:
        """The fields of `spec`, which tell a reader of saved banks what stands where."""
        kind = {"kind": self.kind} if self.kind else {}
        return {**dataclasses.asdict(self.spec), **kind}

    def sample(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw the path of a training step, as the description says."""
        return self.spec.sample(seed, step)
