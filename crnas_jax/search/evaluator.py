"""The batched evaluator: detections of many subnets on one mini-batch out of one compiled call."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from crnas_jax.models.build import Detector
from crnas_jax.training.mesh import replicated


@dataclasses.dataclass(frozen=True)
class SubnetEvaluator:
    """Runs lists of subnets, `chunk` of them in a compiled call.

    Subnets are looped over inside the call (a `vmap` over choices would turn every `lax.switch`
    into running all branches), for as many rounds as the list has entries: that number is data,
    so lists of any length and any subnets share one compilation for each canvas.

    Attributes:
      detector: a supernet's.
      mesh: batches are split over its axis `data`; batch statistics are global.
      chunk: most subnets in a call; bounds the memory of the detections.
    """

    detector: Detector
    mesh: Mesh
    chunk: int = 16

    def detect(
        self,
        variables: PyTree,
        batch: dict[str, Array],
        choices: list,
        stats: list | None = None,
        bn: str = "batch",
    ) -> dict:
        """Detections of every subnet.

        Args:
          variables: the supernet's banks.
          batch: a mini-batch on the devices.
          choices: paths, see `SupernetSpec.choice`.
          stats: for each subnet its statistics (see `bn_calibration`), or None.
          bn: without `stats`: `batch` normalises with those of the mini-batch, `running` with the
            supernet's running averages.

        Returns:
          NumPy arrays as `roi_heads.postprocess` has them, with a leading axis of subnets.
        """
        parts = []
        for start in range(0, len(choices), self.chunk):
            some = choices[start : start + self.chunk]
            number = len(some)
            fill = self.chunk - number
            stacked = _stack([*some, *[some[0]] * fill])
            given = (
                None
                if stats is None
                else _stack([*stats[start : start + self.chunk], *[stats[start]] * fill])
            )
            found = self._detect_chunk(variables, batch, stacked, given, number, bn)
            parts.append(jax.tree.map(lambda leaf, n=number: np.asarray(leaf[:n]), found))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    def moments(self, variables: PyTree, batch: dict[str, Array], choices: list) -> list[PyTree]:
        """For each subnet the mean and variance of this mini-batch at every batch normalisation."""
        return [self._moments(variables, batch, choice) for choice in choices]

    @property
    def compilations(self) -> int:
        """How many programs the evaluator has compiled."""
        return self._detect_chunk._cache_size() + self._moments._cache_size()

    @functools.cached_property
    def _moments(self):
        def moments(variables, batch, choice):
            return self.detector.moments(self.detector.path(variables, choice), batch, choice)

        return jax.jit(moments, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _detect_chunk(self):
        def detect_chunk(variables, batch, choices, stats, number, bn):
            def one(index):
                choice = jax.tree.map(lambda leaf: leaf[index], choices)
                path = self.detector.path(variables, choice)
                if stats is None:
                    found = self.detector.apply(path, batch, choice, bn)
                else:
                    own = jax.tree.map(lambda leaf: leaf[index], stats)
                    path = {**path, "batch_stats": own}
                    found = self.detector.apply(path, batch, choice, "running")
                # Subnets are ranked by their boxes: what is not put out is not computed.
                return {name: found[name] for name in ("boxes", "scores", "labels", "valid")}

            shapes = jax.eval_shape(one, 0)
            results = jax.tree.map(lambda s: jnp.zeros((self.chunk, *s.shape), s.dtype), shapes)

            def body(index, results):
                return jax.tree.map(lambda all_, new: all_.at[index].set(new), results, one(index))

            return lax.fori_loop(0, number, body, results)

        return jax.jit(detect_chunk, static_argnums=5, out_shardings=replicated(self.mesh))


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # on the host: one transfer
