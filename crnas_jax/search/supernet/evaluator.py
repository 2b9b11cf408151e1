"""The batched evaluator: detections of many subnets on one mini-batch out of few compiled calls.

What subnets share is worked out once: the image on the device, the stem, and all blocks up to the
point where their paths part (`prefix_tree`). Heads and suppression run on the images of several
subnets together, as many as the memory holds.
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
from crnas_jax.models.supernet.shared_paths import SharedPaths, Weights
from crnas_jax.search.supernet import memory
from crnas_jax.search.supernet.custom import Foreign, ForeignPaths

# Most subnets in a call: more gain nothing, and a search that is killed would repeat more.
MOST = 16
# A list is cut into calls of these sizes, so that no call is filled up with subnets nobody wants.
_SIZES = (MOST, 4, 1)


@functools.lru_cache(maxsize=4)
def shared_evaluator(
    model: Detector | Foreign, mesh: Mesh, chunk: int | None = None, slots: int = 0
) -> "SubnetEvaluator":
    """The evaluator of these, the same for all who ask, so that they share what it compiles."""
    return SubnetEvaluator(model, mesh, chunk, slots)


@dataclasses.dataclass(frozen=True)
class SubnetEvaluator:
    """Runs lists of subnets on mini-batches.

    Which subnets, and how many, is data: lists of any length share the programs of a canvas, one
    for each size of a call.

    Attributes:
      model: a supernet's `Detector`, or a `Foreign` one.
      mesh: batches are split over its axis `data`, every device takes its images of the same
        subnets; batch statistics are global.
      chunk: most subnets in a call; what fits the memory when None.
      slots: arrays of each stage's size kept for subnets that part within a stage (`prefix_tree`).
    """

    model: Detector | Foreign
    mesh: Mesh
    chunk: int | None = None
    slots: int = 0

    def schedule(self, choices: list) -> prefix_tree.Schedule:
        """In which order these paths are visited, and what is run at each visit."""
        return prefix_tree.schedule(*self._paths.paths(choices), self.slots)

    def detect(
        self,
        variables: PyTree,
        batch: dict[str, Array],
        choices: list,
        stats: list | None = None,
        bn: str = "batch",
    ) -> dict[str, np.ndarray]:
        """Detections of every subnet: NumPy arrays as `roi_heads.postprocess` has them, with a
        leading axis of subnets; of a detector with a mask head `masks` too. Arguments as
        `detect_in_chunks`.
        """
        parts, order = [], []
        for positions, found in self.detect_in_chunks(
            variables, batch, choices, stats, bn, masks=True
        ):
            parts.append(jax.tree.map(np.asarray, found))
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
        """Detections of some subnets at a time, arrays on the devices.

        Args:
          variables: the supernet's banks.
          batch: a mini-batch on the devices.
          choices: paths, see `SupernetSpec.choice`.
          stats: for each subnet its statistics (see `bn_calibration`), or None.
          bn: without `stats`: `batch` normalises with those of the mini-batch, `running` with the
            supernet's running averages.
          masks: whether those of a mask head are wanted.

        Yields:
          Positions in `choices`, and of those subnets `boxes` [subnets, images, n, 4] and so on.
        """
        schedule, bn = self.schedule(choices), bn if stats is None else "given"
        first = None if stats is None else stats[schedule.order[0]]
        state, _ = self._begin(variables, batch, first, bn)

        def visits(start, size):
            positions = schedule.order[start : start + size].tolist()
            some = _stack([choices[position] for position in positions])
            given = None if stats is None else _stack([stats[position] for position in positions])
            return positions, (some, schedule.steps(start, size), given)

        start, number = 0, len(choices)
        most = self.chunk or self._fitting(variables, batch, state, visits(0, 1)[1], bn, masks)
        for size in sorted({min(size, most) for size in _SIZES}, reverse=True):
            while number - start >= size:
                positions, rows = visits(start, size)
                state, found = self._detect(variables, batch, state, rows, bn, masks)
                yield positions, found
                start += size

    def moments(self, variables: PyTree, batch: dict[str, Array], choices: list):
        """Mean and variance of this mini-batch at every batch normalisation.

        Returns:
          The stem's; and all others' in the order of `schedule`, a list of trees with `MOST`
          subnets each (the last one filled up), 0 where a subnet runs no block of its own.
        """
        schedule = self.schedule(choices)
        state, stem = self._begin(variables, batch, None, "collect")
        found = []
        for start in range(0, len(choices), MOST):
            positions = schedule.order[start : start + MOST].tolist()
            number = len(positions)
            fill = MOST - number
            some = _stack([choices[position] for position in positions + positions[:1] * fill])
            steps = {
                name: np.pad(rows, ((0, fill), (0, 0)))
                for name, rows in schedule.steps(start, number).items()
            }
            state, moments = self._collect(variables, batch, state, (some, steps), number)
            found.append(moments)
        return stem, found

    @property
    def compilations(self) -> int:
        """How many programs the evaluator has compiled."""
        return sum(f._cache_size() for f in (self._begin, self._detect, self._collect))

    @functools.cached_property
    def _paths(self):
        foreign = isinstance(self.model, Foreign)
        return ForeignPaths(self.model) if foreign else SharedPaths(self.model, self.slots)

    def _fitting(self, variables, batch, state, rows, bn, masks):
        """How many subnets the memory holds at once; `rows` are those of one."""
        key = (batch["image"].shape, bn, masks)
        if key not in self._fits:
            run = functools.partial(self._detections, bn=bn, masks=masks)
            one = memory.peak_bytes(run, variables, batch, state, rows) // self.mesh.size
            self._fits[key] = memory.fitting(self.mesh.devices.flat[0], one)
        return self._fits[key]

    @functools.cached_property
    def _fits(self):
        return {}

    @functools.cached_property
    def _begin(self):
        def begin(variables, batch, stats, bn):
            return self._paths.begin(Weights(variables, bn, stats), batch)

        return jax.jit(begin, static_argnames="bn")

    @functools.cached_property
    def _detect(self):
        found = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        return jax.jit(
            self._detections,
            static_argnames=("bn", "masks"),
            donate_argnums=2,
            out_shardings=(None, found),
        )

    @functools.cached_property
    def _collect(self):
        return jax.jit(self._moments, donate_argnums=2)

    def _detections(self, variables, batch, state, rows, bn, masks):
        """Visits one after the other, then the heads on all their images."""

        def visit(index, state):
            choice, step, stats = jax.tree.map(lambda leaf: leaf[index], rows)
            weights = Weights(variables, bn, stats)
            state, pyramid, _ = self._paths.visit(weights, batch, state, choice, step)
            return state, pyramid

        number = len(jax.tree.leaves(rows)[0])
        state, pyramids = _visits(visit, state, number, number, axis=1)
        canvas = batch["image"].shape[1:3]
        weights, size = Weights(variables, bn), batch["image_size"]
        found = self._paths.detections(weights, pyramids, size, canvas, self.mesh)
        # What is not put out is not computed.
        found = {name: leaf for name, leaf in found.items() if masks or name != "masks"}
        return state, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), found)

    def _moments(self, variables, batch, state, rows, number):
        def visit(index, state):
            choice, step = jax.tree.map(lambda leaf: leaf[index], rows)
            weights = Weights(variables, "collect")
            state, _, moments = self._paths.visit(weights, batch, state, choice, step)
            return state, moments

        return _visits(visit, state, number, len(jax.tree.leaves(rows)[0]), axis=0)


def _visits(visit, state, number, most, axis):
    """The state after `number` visits, and of each what it puts out, at most `most`, on an axis."""
    shapes = jax.eval_shape(visit, 0, state)[1]

    def room(shape):
        dims = (*shape.shape[:axis], most, *shape.shape[axis:])
        return jnp.zeros(dims, shape.dtype)

    def body(index, carry):
        state, found = carry
        state, new = visit(index, state)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=index, axis=axis)
        return state, jax.tree.map(put, found, new)

    return lax.fori_loop(0, number, body, (state, jax.tree.map(room, shapes)))


def _stack(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)  # on the host: one transfer
