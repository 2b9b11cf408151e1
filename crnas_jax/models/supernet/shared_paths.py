"""Many paths of a supernet on one mini-batch: what they have in common is run once.

The paths are visited in the order of a `search.prefix_tree.Schedule`, one after the other inside a
compiled program, and each runs the blocks alone that the schedule names. Where the supernet of
training has a scan over all places with a conditional in it, here a loop runs over just those
blocks: its bounds, the rows of the banks it reads and the slots it writes are data. (A loop of no
or one round stands for a conditional where large arrays pass through: they stay where they are.)
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from crnas_jax.models.backbones.mobilenet_v2 import MobileNetStem, MobileNetTail
from crnas_jax.models.backbones.resnet import ResNetStem
from crnas_jax.models.backbones.staged import Block
from crnas_jax.models.build import BN_MODES, PRECISIONS, Detector
from crnas_jax.models.layers import BN_COLLECT, BN_RUNNING, preprocess
from crnas_jax.models.supernet import banks

# Statistics a path may be run with: those of `build.BN_MODES`, ones that are given, or the
# mini-batch's, which are collected on the way.
MODES = {**BN_MODES, "given": BN_RUNNING, "collect": BN_COLLECT}


@dataclasses.dataclass(frozen=True)
class SharedPaths:
    """The programs of a detector's supernet for lists of paths.

    What is carried from visit to visit, `state`, is the stem's output, every stage's, and `slots`
    arrays of each stage's size.

    Attributes:
      detector: the supernet's.
      slots: see `prefix_tree.schedule`.
    """

    detector: Detector
    slots: int = 0

    def paths(self, choices: list) -> tuple[list, tuple[int, ...]]:
        """What `prefix_tree.schedule` wants to know of these paths."""
        spec = self.detector.spec
        found = []
        for choice in choices:
            path = []
            for stage in range(len(spec.places)):
                operations = banks.stage_blocks(spec, choice, stage)
                branch = len(operations) if spec.stage_sharing == "branch" else 0
                path.append(tuple((branch, operation) for operation in operations))
            found.append(tuple(path))
        return found, spec.places

    def begin(self, weights: "Weights", batch: dict[str, Array]):
        """The state before the first visit, and the stem's moments.

        Args:
          weights: with given statistics, those of one of the paths; the stem's are everybody's.
          batch: a mini-batch.
        """
        detector, arch = self.detector, self.detector.spec.deepest
        x = preprocess(batch["image"], batch["image_size"], PRECISIONS[detector.precision])
        inverted = arch.traits.block == "inverted"
        stem = (MobileNetStem if inverted else ResNetStem)(arch.stem_channels)
        mode = self._mode(weights, -1)
        x, moments = _run(stem, weights.backbone("stem"), mode, batch["weight"], x)
        stages, slots = [], []
        height, width = x.shape[1:3]
        for stage in range(len(arch.widths)):
            shape = arch.block(stage, first=True)
            height, width = (-(-side // shape.stride) for side in (height, width))
            output = (len(x), height, width, shape.out_channels)
            stages.append(jnp.zeros(output, x.dtype))
            slots.append(jnp.zeros((self.slots, *output), x.dtype))
        return {"stem": x, "stages": stages, "slots": slots}, moments

    def visit(self, weights: "Weights", batch: dict[str, Array], state, choice, step):
        """Runs one path as far as it is new.

        Args:
          weights: with given statistics, the path's.
          batch: a mini-batch.
          state: after the visit before.
          choice: the path.
          step: this visit's row of each of the schedule's arrays.

        Returns:
          The state, the pyramid, and the moments of what was run, 0 elsewhere.
        """
        arch = self.detector.spec.deepest
        x, stages, slots, moments, features = state["stem"], [], [], {}, []
        for stage in range(len(arch.widths)):
            before = (state["stages"][stage], state["slots"][stage])
            x, kept, own = self._stage(stage, weights, batch["weight"], x, before, choice, step)
            stages.append(x)
            slots.append(kept)
            moments[f"stage{stage + 1}"] = own
            if stage == len(arch.widths) - 1 and arch.tail_channels:
                tail = MobileNetTail(arch.tail_channels)
                trees, mode = weights.backbone("tail"), self._mode(weights, stage)
                x, moments["tail"] = _run(tail, trees, mode, batch["weight"], x)
            if stage in arch.traits.levels:
                features.append(x)
        pyramid, updated = self.detector.module.apply(
            weights.others(),
            tuple(features),
            MODES[weights.bn],
            batch["weight"],
            method="neck",
            mutable=["batch_stats"],
        )
        state = {"stem": state["stem"], "stages": stages, "slots": slots}
        return state, pyramid, {"backbone": moments, **updated.get("batch_stats", {})}

    def detections(
        self, weights: "Weights", pyramids, image_size, canvas: tuple[int, int], mesh: Mesh
    ) -> dict[str, Array]:
        """What the heads find, for all visits at once: [images, visits, ...].

        Args:
          weights: of the supernet.
          pyramids: of each level [images, visits, height, width, channels].
          image_size: int32 [images, 2].
          canvas: (height, width).
          mesh: images are split over its axis `data`; no device needs another's.
        """
        visits = pyramids[0].shape[1]

        def heads(params, pyramids, image_size):
            flat = tuple(level.reshape(-1, *level.shape[2:]) for level in pyramids)
            sizes = jnp.repeat(image_size, visits, axis=0)
            found = self.detector.module.apply(
                {"params": params}, flat, sizes, canvas, method="detections"
            )
            return jax.tree.map(lambda leaf: leaf.reshape(-1, visits, *leaf.shape[1:]), found)

        split, whole = PartitionSpec("data"), PartitionSpec()
        run = jax.shard_map(
            heads, mesh=mesh, in_specs=(whole, split, split), out_specs=split, check_vma=False
        )
        return run(weights.others()["params"], pyramids, image_size)

    def _mode(self, weights, stage):
        """Of batch normalisation; what is frozen keeps its statistics."""
        frozen, arch = self.detector.frozen, self.detector.spec.deepest
        return BN_RUNNING if frozen.norm or stage <= frozen.last_stage(arch) else MODES[weights.bn]

    def _stage(self, stage, weights, weight, below, before, choice, step):
        """Output, slots and moments of a stage.

        Args: its number; `Weights`; of the images; its input; its output at the visit before and
        its slots; as `visit`.
        """
        spec, (x, slots) = self.detector.spec, before
        offset, places = sum(spec.places[:stage]), spec.places[stage]
        active, operations = banks.stage_codes(spec, choice, stage)
        start, load = step["start"][stage], step["load"][stage]
        save = step["save"][offset : offset + places]
        path, moments = weights.stage(spec, stage, choice), {}
        if weights.bn == "collect":
            moments = path.moments()

        def block(kind, carry_on):
            shape = spec.deepest.block(stage, first=kind == "first")
            module = Block(shape, spec.dilations, in_control_flow=True, parent=None)

            def run(place, carry):
                x, slots, moments = carry
                row = place if kind == "first" else place - 1
                operands = (x if carry_on else below, operations[place])
                mode = self._mode(weights, stage)
                x, own = _run(module, path.block(kind, row), mode, weight, *operands)
                if moments:
                    rows = jax.tree.map(lambda all_, new: all_.at[row].set(new), moments[kind], own)
                    moments = {**moments, kind: rows}
                if self.slots:
                    put = functools.partial(lax.dynamic_update_index_in_dim, axis=0)
                    slots = _when(save[place] >= 0, lambda s: put(s, x, save[place]), slots)
                return x, slots, moments

            return run

        if self.slots:
            x = _when(load >= 0, lambda _: slots[load], x)
        carry = (x, slots, moments)
        carry = _when(start == 0, functools.partial(block("first", False), 0), carry)
        if places > 1:
            carry = lax.fori_loop(jnp.maximum(start, 1), active.sum(), block("rest", True), carry)
        return carry


@dataclasses.dataclass(frozen=True)
class Weights:
    """The supernet's banks, and the statistics paths are run with.

    Attributes:
      banks: the supernet's variables.
      bn: one of `MODES`.
      stats: with `given`, of one path.
    """

    banks: PyTree
    bn: str
    stats: PyTree | None = None

    def backbone(self, name: str) -> PyTree:
        """Of a part of the backbone that all paths have."""
        return {kind: tree["backbone"][name] for kind, tree in self._own().items()}

    def others(self) -> PyTree:
        """Of all but the backbone."""
        return {
            kind: {part: own for part, own in tree.items() if part != "backbone"}
            for kind, tree in self._own().items()
        }

    def stage(self, spec: banks.SupernetSpec, stage: int, choice) -> "_StageWeights":
        """Of a stage of a path."""
        name = f"stage{stage + 1}"
        trees = {kind: tree["backbone"][name] for kind, tree in self.banks.items()}
        rows = {kind: banks.rows(spec, {name: tree}, choice)[name] for kind, tree in trees.items()}
        return _StageWeights(trees, rows, self.stats and self.stats["backbone"][name])

    def _own(self):
        return self.banks if self.stats is None else {**self.banks, "batch_stats": self.stats}


@dataclasses.dataclass(frozen=True)
class _StageWeights:
    """Banks of a stage, the rows of a path in them, and its statistics where they are given."""

    banks: PyTree
    rows: PyTree
    stats: PyTree | None

    def block(self, kind: str, row) -> PyTree:
        """Of the block at a place."""
        found = {
            collection: jax.tree.map(
                lambda index, bank: bank[index[row]], self.rows[collection][kind], tree[kind]
            )
            for collection, tree in self.banks.items()
        }
        if self.stats is not None:
            found["batch_stats"] = jax.tree.map(lambda leaf: leaf[row], self.stats[kind])
        return found

    def moments(self) -> PyTree:
        """Room for those of every place."""
        stats = banks.gather(self.banks["batch_stats"], self.rows["batch_stats"])
        return jax.tree.map(jnp.zeros_like, stats)


def _run(module, trees, mode, weight, *operands):
    """Output and moments of a module."""
    x, updated = module.apply(trees, *operands, mode, weight, mutable=["batch_stats"])
    return x, updated["batch_stats"]


def _when(condition, function, operand):
    """A conditional whose operand stays where it is: a loop of one or no round."""
    return lax.fori_loop(0, condition.astype(jnp.int32), lambda _, x: function(x), operand)
