"""Many paths of a supernet on one mini-batch: what they share is run once.

The paths are visited in the order of a `prefix_tree.Schedule`, one after the other inside a
compiled program, and each runs only the blocks that the schedule names. Where the supernet of
training has a scan over all places with a conditional in it, here a loop runs over just those
blocks: its bounds, the rows of the banks it reads and the slots it writes are data. (A loop of zero
or one iteration stands for a conditional where large arrays pass through: they stay in place.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from crnas_jax.arch.staged import Part
from crnas_jax.models.backbones.staged import end_module
from crnas_jax.models.build import BN_MODES, Detector
from crnas_jax.models.layers import BN_COLLECT, BN_RUNNING, preprocess
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.module import supernet_block
from crnas_jax.models.supernet.prefix_tree import Path, Visits
from crnas_jax.parallel.mesh import batch_spec

# Statistics that a path may be run with: those of `build.BN_MODES`, given ones, or the
# mini-batch's, which are collected on the way.
MODES = {**BN_MODES, "given": BN_RUNNING, "collect": BN_COLLECT}


@dataclasses.dataclass(frozen=True)
class SharedPaths:
    """The programs of a detector's supernet for lists of paths.

    The state that is carried from visit to visit is the output of the stem and of every stage, and
    `num_slots` arrays of each stage's size.

    Attributes:
      detector: a detector on a supernet.
      num_slots: see `prefix_tree.schedule`.
    """

    detector: Detector
    num_slots: int = 0

    gives_statistics = True

    def paths(self, choices: list) -> tuple[list[Path], tuple[int, ...]]:
        """Return the paths as `prefix_tree.schedule` takes them, and the places of each stage."""
        spec = self.detector.spec
        paths = []
        for choice in choices:
            path = []
            for stage in range(len(spec.places)):
                operations = banks.block_operations(spec, choice, stage)
                branch = len(operations) if spec.stage_sharing == "branch" else 0
                path.append(tuple((branch, operation) for operation in operations))
            paths.append(tuple(path))
        return paths, spec.places

    def begin(self, weights: "Weights", batch: dict[str, Array]):
        """Return the state before the first visit, and the moments of the parts that all share.

        Args:
          weights: with given statistics, those of any of the paths: they share the stem's.
          batch: a mini-batch.
        """
        detector, arch = self.detector, self.detector.backbone.arch
        x = preprocess(batch["image"], batch["image_size"], detector.dtype)
        stem, *_ = arch.parts()
        norm = self._norm(weights, stem, batch)
        x, moments = _run(end_module(arch, stem), weights.part(stem), x, norm)
        stages, slots = [], []
        height, width = x.shape[1:3]
        for part in arch.stages:
            shape = part.units[0]
            height, width = (-(-side // shape.stride) for side in (height, width))
            output = (len(x), height, width, shape.out_channels)
            stages.append(jnp.zeros(output, x.dtype))
            slots.append(jnp.zeros((self.num_slots, *output), x.dtype))
        return {"stem": x, "stages": stages, "slots": slots}, {"stem": moments}

    def visit(self, weights: "Weights", batch: dict[str, Array], state, choice, visit: Visits):
        """Run one path as far as it is new.

        Args:
          weights: with given statistics, the path's.
          batch: a mini-batch.
          state: the state after the visit before.
          choice: the path.
          visit: this visit's row of the schedule.

        Returns:
          The state, the pyramid, and the moments of what was run, 0 elsewhere.
        """
        arch = self.detector.backbone.arch
        x, stages, slots, moments, features = state["stem"], [], [], {}, []
        for part in arch.parts()[1:]:
            norm = self._norm(weights, part, batch)
            if part.kind == "stage":
                previous = (state["stages"][part.stage], state["slots"][part.stage])
                x, stage_slots, part_moments = self._stage(
                    part, weights, norm, x, previous, choice, visit
                )
                stages.append(x)
                slots.append(stage_slots)
            else:
                x, part_moments = _run(end_module(arch, part), weights.part(part), x, norm)
            moments[part.name] = part_moments
            if part.level:
                features.append(x)
        pyramid, updated = self.detector.module.apply(
            weights.without_backbone(),
            tuple(features),
            self.detector.normalization(batch, MODES[weights.bn]),
            method="neck",
            mutable=["batch_stats"],
        )
        state = {"stem": state["stem"], "stages": stages, "slots": slots}
        return state, pyramid, {"backbone": moments, **updated.get("batch_stats", {})}

    def detections(
        self, weights: "Weights", pyramids, image_size, canvas: tuple[int, int], mesh: Mesh
    ) -> dict[str, Array]:
        """Run the heads for all visits at once; arrays [images, visits, ...].

        Args:
          weights: the supernet's weights.
          pyramids: for each level, features [images, visits, height, width, channels].
          image_size: int32 [images, 2].
          canvas: (height, width).
          mesh: images are split over its axis `data`; no device needs another's.
        """
        return run_heads(self.detector, weights, pyramids, image_size, canvas, mesh)

    def _norm(self, weights, part, batch):
        """Return the normalisation of a part; frozen layers use their stored statistics."""
        norm = self.detector.normalization(batch, MODES[weights.bn])
        return self.detector.freeze.norm(self.detector.backbone.arch, part.name, norm)

    def _stage(self, part, weights, norm, stage_input, previous, choice, visit):
        """Run the new blocks of a stage.

        Args:
          part: the stage.
          weights: see `visit`.
          norm: what normalisation layers need.
          stage_input: output of the part before.
          previous: this stage's output at the visit before, and its slots.
          choice: see `visit`.
          visit: see `visit`.

        Returns:
          The stage's output, its slots, and its moments.
        """
        spec, (x, slots), stage = self.detector.spec, previous, part.stage
        offset, num_places = sum(spec.places[:stage]), spec.places[stage]
        active, operations = banks.place_codes(spec, choice, stage)
        start, load = visit.start[stage], visit.load[stage]
        save = visit.save[offset : offset + num_places]
        path, moments = weights.stage(spec, part, choice), {}
        if weights.bn == "collect":
            moments = path.zero_moments()

        def block(kind, continues):
            module = supernet_block(spec, part, kind)

            def run(place, carry):
                x, slots, moments = carry
                row = place if kind == "first" else place - 1
                operands = (x if continues else stage_input, operations[place])
                x, block_moments = _run(module, path.block(kind, row), *operands, norm)
                if moments:
                    rows = jax.tree.map(
                        lambda stacked, new: stacked.at[row].set(new), moments[kind], block_moments
                    )
                    moments = {**moments, kind: rows}
                if self.num_slots:
                    put = functools.partial(lax.dynamic_update_index_in_dim, axis=0)
                    slots = _when(save[place] >= 0, lambda s: put(s, x, save[place]), slots)
                return x, slots, moments

            return run

        if self.num_slots:
            x = _when(load >= 0, lambda _: slots[load], x)
        carry = (x, slots, moments)
        carry = _when(start == 0, functools.partial(block("first", False), 0), carry)
        if num_places > 1:
            carry = lax.fori_loop(jnp.maximum(start, 1), active.sum(), block("rest", True), carry)
        return carry


@dataclasses.dataclass(frozen=True)
class Weights:
    """The supernet's banks, and the statistics that paths are run with.

    Attributes:
      banks: the supernet's variables.
      bn: a key of `MODES`.
      stats: with `given`, the statistics of one path.
    """

    banks: PyTree
    bn: str
    stats: PyTree | None = None

    def part(self, part: Part) -> PyTree:
        """Return the variables of the stem or the tail, which all paths share."""
        return {kind: tree["backbone"][part.name] for kind, tree in self._variables().items()}

    def without_backbone(self) -> PyTree:
        """Return the variables of neck and heads."""
        return {
            kind: {name: leaves for name, leaves in tree.items() if name != "backbone"}
            for kind, tree in self._variables().items()
        }

    def stage(self, spec: banks.SupernetSpec, part: Part, choice) -> "_StageWeights":
        """Return the variables of a stage for a path."""
        name = part.name
        trees = {kind: tree["backbone"][name] for kind, tree in self.banks.items()}
        rows = {kind: banks.rows(spec, {name: tree}, choice)[name] for kind, tree in trees.items()}
        return _StageWeights(trees, rows, self.stats and self.stats["backbone"][name])

    def _variables(self):
        return self.banks if self.stats is None else {**self.banks, "batch_stats": self.stats}


@dataclasses.dataclass(frozen=True)
class _StageWeights:
    """A stage's banks, the rows of a path in them, and the path's statistics where given."""

    banks: PyTree
    rows: PyTree
    stats: PyTree | None

    def block(self, kind: str, row) -> PyTree:
        """Return the variables of the block in a row."""
        variables = {
            collection: jax.tree.map(
                lambda index, bank: bank[index[row]], self.rows[collection][kind], tree[kind]
            )
            for collection, tree in self.banks.items()
        }
        if self.stats is not None:
            variables["batch_stats"] = jax.tree.map(lambda leaf: leaf[row], self.stats[kind])
        return variables

    def zero_moments(self) -> PyTree:
        """Return zeros in place of the moments of every place."""
        stats = banks.gather(self.banks["batch_stats"], self.rows["batch_stats"])
        return jax.tree.map(jnp.zeros_like, stats)


def run_heads(
    detector: Detector,
    weights: "Weights",
    pyramids,
    image_size,
    canvas: tuple[int, int],
    mesh: Mesh,
) -> dict[str, Array]:
    """Run the heads of a detector for all visits at once, see `SharedPaths.detections`."""
    num_visits = pyramids[0].shape[1]

    def heads(params, pyramids, image_size):
        flat = tuple(level.reshape(-1, *level.shape[2:]) for level in pyramids)
        sizes = jnp.repeat(image_size, num_visits, axis=0)
        detections = detector.module.apply(
            {"params": params}, flat, sizes, canvas, method="detections"
        )
        return jax.tree.map(lambda leaf: leaf.reshape(-1, num_visits, *leaf.shape[1:]), detections)

    split, whole = batch_spec(mesh), PartitionSpec()
    run = jax.shard_map(
        heads, mesh=mesh, in_specs=(whole, split, split), out_specs=split, check_vma=False
    )
    return run(weights.without_backbone()["params"], pyramids, image_size)


def _run(module, variables, *operands):
    """Return the output and the moments of a module."""
    x, updated = module.apply(variables, *operands, mutable=["batch_stats"])
    return x, updated["batch_stats"]


def _when(condition, function, operand):
    """Apply `function` if `condition`: a loop of zero or one iteration, so arrays stay in place."""
    return lax.fori_loop(0, condition.astype(jnp.int32), lambda _, x: function(x), operand)
