"""Many paths of a scale-permuted supernet on one mini-batch, each run as a whole.

Any block of such a network may read any earlier one, so that paths which differ in an early block
share little behind it.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.prefix_tree import Path, Visits
from crnas_jax.models.supernet.shared_paths import MODES, Weights, run_heads


@dataclasses.dataclass(frozen=True)
class WholePaths:
    """The interface of `shared_paths.SharedPaths` for paths that share nothing.

    Attributes:
      detector: a detector on a supernet of a scale-permuted network.
      num_slots: not used: there is nothing to keep for a later path.
    """

    detector: Detector
    num_slots: int = 0

    gives_statistics = True

    def paths(self, choices: list) -> tuple[list[Path], tuple[int, ...]]:
        """Return paths of one stage with one block each, no two of them equal."""
        blocks = [
            (index, *np.concatenate([np.ravel(choice[name]) for name in sorted(choice)]).tolist())
            for index, choice in enumerate(choices)
        ]
        return [((block,),) for block in blocks], (1,)

    def begin(self, weights: Weights, batch: dict[str, Array]):
        """Return empty state and moments: nothing is carried from one visit to the next."""
        del weights, batch
        return (), {}

    def visit(self, weights: Weights, batch: dict[str, Array], state, choice, visit: Visits):
        """Run one path; arguments and result as `SharedPaths.visit`."""
        del visit
        variables = self.detector.path(weights.banks, choice)
        if weights.stats is not None:
            variables["batch_stats"] = weights.stats
        pyramid, updated = self.detector.module.apply(
            variables, batch, choice, MODES[weights.bn], method="features", mutable=["batch_stats"]
        )
        return state, pyramid, updated["batch_stats"]

    def detections(
        self, weights: Weights, pyramids, image_size, canvas: tuple[int, int], mesh: Mesh
    ) -> dict[str, jnp.ndarray]:
        """Run the heads for all visits at once; see `SharedPaths.detections`."""
        return run_heads(self.detector, weights, pyramids, image_size, canvas, mesh)
