"""The batched evaluator: detections of many subnets on one mini-batch from few compiled calls.

Work that subnets share is done once: the image on the device, the stem, and all blocks up to the
point where their paths part (`prefix_tree`). Heads and suppression run on the images of several
subnets together, as many as fit the memory.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from crnas_jax.models.build import Detector
from crnas_jax.models.supernet import prefix_tree
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.models.supernet.shared_paths import SharedPaths, Weights
from crnas_jax.models.supernet.whole_paths import WholePaths
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import batch_spec
from crnas_jax.search.supernet import memory
from crnas_jax.search.supernet.custom import CustomModel, CustomPaths

# Most subnets in a call: more gain nothing, and a killed search would repeat more.
MAX_SUBNETS = 16
# What runs the subnets of a kind of supernet.
_PATHS = {
    SupernetSpec: SharedPaths,
    ScaleSupernetSpec: WholePaths,
    ConnectionSupernetSpec: WholePaths,
}
# A list is cut into calls of these sizes, so that no call is padded with unwanted subnets.
_SIZES = (MAX_SUBNETS, 4, 1)


@functools.lru_cache(maxsize=4)
def shared_evaluator(
    model: Detector | CustomModel, mesh: Mesh, max_subnets_per_call: int = 0, num_slots: int = 0
) -> "SubnetEvaluator":
    """Return the evaluator for these arguments, the same for all callers: they share programs."""
    return SubnetEvaluator(model, mesh, max_subnets_per_call, num_slots)


@dataclasses.dataclass(frozen=True)
class SubnetEvaluator:
    """Run lists of subnets on mini-batches.

    Which subnets, and how many, is data: lists of any length share the programs of a canvas, one
    for each size of a call.

    Attributes:
      model: a detector on a supernet, or a custom one.
      mesh: batches are split over its axis `data`, every device takes its images through the same
        subnets; batch statistics are global.
      max_subnets_per_call: most subnets in a call; 0 for what fits the memory.
      num_slots: arrays of each stage's size for subnets that part within a stage (`prefix_tree`).
    """

    model: Detector | CustomModel
    mesh: Mesh
    max_subnets_per_call: int = 0
    num_slots: int = 0

    def schedule(self, choices: list) -> prefix_tree.Schedule:
        """Plan the order in which these paths are visited, and what is run at each visit."""
        return prefix_tree.schedule(*self._paths.paths(choices), self.num_slots)

    def detect(
        self,
        variables: PyTree,
        batch: dict[str, Array],
        choices: list,
        stats: list | None = None,
        bn: str = "batch",
    ) -> dict[str, np.ndarray]:
        """Return the detections of every subnet.

        Args:
          variables: see `detect_in_chunks`, as the other arguments.
          batch: a mini-batch on the devices.
          choices: paths.
          stats: statistics of each subnet, or None.
          bn: statistics without `stats`.

        Returns:
          NumPy arrays as `box_head.postprocess` returns them, with a leading axis of subnets; with
          a mask head `masks` too.
        """
        parts, order = [], []
        for positions, detections in self.detect_in_chunks(
            variables, batch, choices, stats, bn, masks=True
        ):
            parts.append(hosts.fetch(detections))
            order.extend(positions)
        back = np.argsort(order)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[back], *parts)

    def detect_in_chunks(
        self,
        variables: PyTree,
        batch: dict[str, Array],
        choices: list,
        stats: list | None = None,
        bn: str = "batch",
        masks: bool = False,
    ) -> Iterator[tuple[list[int], dict[str, Array]]]:
        """Yield the detections of a few subnets at a time, arrays on the devices.

        Args:
          variables: the supernet's banks.
          batch: a mini-batch on the devices.
          choices: paths, see `SupernetSpec.choice`.
          stats: statistics of each subnet (see `bn_calibration`), or None.
          bn: without `stats`: `batch` normalises with the mini-batch's statistics, `running` with
            the supernet's averages.
          masks: whether a mask head's masks are wanted.

        Yields:
          Positions in `choices`, and those subnets' `boxes` [subnets, images, n, 4] and so on.
        """
        schedule, bn = self.schedule(choices), bn if stats is None else "given"
        first = None if stats is None else stats[schedule.order[0]]
        state, _ = self._begin(variables, batch, first, bn)

        def rows(start, size):
            positions = schedule.order[start : start + size].tolist()
            stacked = _stack([choices[position] for position in positions])
            given = None if stats is None else _stack([stats[position] for position in positions])
            return positions, (stacked, schedule.visits.rows(start, size), given)

        start, num_subnets = 0, len(choices)
        max_subnets = self.max_subnets_per_call
        if not max_subnets:
            max_subnets = self._fitting(variables, batch, state, rows(0, 1)[1], bn, masks)
        for size in sorted({min(size, max_subnets) for size in _SIZES}, reverse=True):
            while num_subnets - start >= size:
                positions, visits = rows(start, size)
                state, detections = self._detect(variables, batch, state, visits, bn, masks)
                yield positions, detections
                start += size

    def moments(self, variables: PyTree, batch: dict[str, Array], choices: list):
        """Return mean and variance of this mini-batch at every batch normalisation.

        Returns:
          Those of the parts that all subnets share; and all others' in the order of `schedule`, a
          list of trees with `MAX_SUBNETS` subnets each (the last one padded), 0 where a subnet runs
          no block itself.
        """
        schedule = self.schedule(choices)
        state, shared = self._begin(variables, batch, None, "collect")
        moments = []
        for start in range(0, len(choices), MAX_SUBNETS):
            positions = schedule.order[start : start + MAX_SUBNETS].tolist()
            num_visits = len(positions)
            padded = positions + positions[:1] * (MAX_SUBNETS - num_visits)
            stacked = _stack([choices[position] for position in padded])
            visits = schedule.visits.rows(start, num_visits).padded(MAX_SUBNETS)
            state, visit_moments = self._collect(
                variables, batch, state, (stacked, visits), num_visits
            )
            moments.append(visit_moments)
        return shared, moments

    @property
    def compilations(self) -> int:
        """Number of programs that the evaluator has compiled."""
        return sum(f._cache_size() for f in (self._begin, self._detect, self._collect))

    @property
    def gives_statistics(self) -> bool:
        """Whether `collect` works: custom networks keep their statistics to themselves."""
        return self._paths.gives_statistics

    @functools.cached_property
    def _paths(self):
        if isinstance(self.model, CustomModel):
            return CustomPaths(self.model)
        return _PATHS[type(self.model.spec)](self.model, self.num_slots)

    def _fitting(self, variables, batch, state, rows, bn, masks):
        """Return how many subnets fit the memory at once; `rows` are those of one subnet."""
        key = (batch["image"].shape, bn, masks)
        if key not in self._fits:
            run = functools.partial(self._detections, bn=bn, masks=masks)
            peak = memory.peak_bytes(run, variables, batch, state, rows) // self.mesh.size
            self._fits[key] = memory.fitting(self.mesh.devices.flat[0], peak)
        return self._fits[key]

    @functools.cached_property
    def _fits(self):
        return {}

    @functools.cached_property
    def _begin(self):
        def begin(variables, batch, stats, bn):
            return self._paths.begin(Weights(variables, bn, stats), batch)

        return hosts.jit(begin, static_argnames="bn")

    @functools.cached_property
    def _detect(self):
        sharding = NamedSharding(self.mesh, PartitionSpec(None, *batch_spec(self.mesh)))
        return hosts.jit(
            self._detections,
            static_argnames=("bn", "masks"),
            donate_argnums=2,
            out_shardings=(None, sharding),
        )

    @functools.cached_property
    def _collect(self):
        return hosts.jit(self._moments, donate_argnums=2)

    def _detections(self, variables, batch, state, rows, bn, masks):
        """Run visits one after the other, then the heads on all their images."""

        def visit(index, state):
            choice, visits, stats = jax.tree.map(lambda leaf: leaf[index], rows)
            weights = Weights(variables, bn, stats)
            state, pyramid, _ = self._paths.visit(weights, batch, state, choice, visits)
            return state, pyramid

        num_visits = len(jax.tree.leaves(rows)[0])
        state, pyramids = _visit_all(visit, state, num_visits, num_visits, axis=1)
        canvas = batch["image"].shape[1:3]
        weights, size = Weights(variables, bn), batch["image_size"]
        detections = self._paths.detections(weights, pyramids, size, canvas, self.mesh)
        # Outputs that are not returned are not computed.
        detections = {name: leaf for name, leaf in detections.items() if masks or name != "masks"}
        return state, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), detections)

    def _moments(self, variables, batch, state, rows, num_visits):
        def visit(index, state):
            choice, visits = jax.tree.map(lambda leaf: leaf[index], rows)
            weights = Weights(variables, "collect")
            state, _, moments = self._paths.visit(weights, batch, state, choice, visits)
            return state, moments

        return _visit_all(visit, state, num_visits, len(jax.tree.leaves(rows)[0]), axis=0)


def _visit_all(visit, state, num_visits, max_visits, axis):
    """Return the state after the visits, and their outputs stacked on an axis of `max_visits`."""
    shapes = jax.eval_shape(visit, 0, state)[1]

    def room(shape):
        dims = (*shape.shape[:axis], max_visits, *shape.shape[axis:])
        return jnp.zeros(dims, shape.dtype)

    def body(index, carry):
        state, outputs = carry
        state, output = visit(index, state)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=index, axis=axis)
        return state, jax.tree.map(put, outputs, output)

    return lax.fori_loop(0, num_visits, body, (state, jax.tree.map(room, shapes)))


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # on the host: one transfer
