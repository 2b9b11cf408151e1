"""A supernet over the connections of a scale-permuted network: one program for all paths.

Order, levels and kinds of the blocks are fixed; which two earlier blocks each of them reads is
data: a `lax.switch` for each of the two. The way from a parent to a block (`Resample`) has weights
of its own for every pair of the two. All leaves of permuted blocks are banks of one row: what a
path does not use has no row in it, so that a step does not move it.

A block that reaches no output is computed all the same, and moves nothing: blocks outside of
control flow have faster gradients (`ops.convolution`), and few of a drawn path's blocks are dead
(2 % of SpineNet-49's, 8 % in `benchmarks/connections_supernet.py`).
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from crnas_jax.arch import connections
from crnas_jax.arch.scale_shapes import Node, ResampleShape, resample_shape
from crnas_jax.models.backbones.scale_permuted import (
    Repeat,
    Resample,
    ScaleBlock,
    ScalePermutedBackbone,
)
from crnas_jax.models.layers import BN_RUNNING, LayerOptions, Normalization
from crnas_jax.models.supernet.banks import WHOLE
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.models.supernet.functions import SupernetFunctions
from crnas_jax.models.supernet.rows import in_row
from crnas_jax.models.supernet.switched import switched
from crnas_jax.parallel.mesh import gathered


@dataclasses.dataclass(frozen=True)
class ConnectionSupernet(SupernetFunctions):
    """The supernet over connections as functions on its banks."""

    spec: ConnectionSupernetSpec

    kind = "connections"

    @property
    def module(self) -> nn.Module:
        """The Flax module, which runs on the variables of one path."""
        return ConnectionBackbone(self.arch, self.remat, self.freeze, spec=self.spec)

    @property
    def example_choice(self) -> dict[str, np.ndarray]:
        """A path: for shapes."""
        return self.spec.choice([read[-2:] for read in self.spec.candidates])

    def init(self, key: Array, path_variables: PyTree) -> PyTree:
        """Return `path_variables`: a path has all of the banks' rows."""
        del key
        return path_variables

    def rows(self, tree: PyTree, choice: dict[str, ArrayLike]) -> PyTree:
        """Find the row of each bank in `tree` that a path uses: int32 [1], 1 for none.

        `WHOLE` for what all paths use.
        """

        @functools.cache  # a way has many leaves
        def row(place, part):
            is_used = choice["alive"][place]
            if part.startswith("from"):
                position = self.spec.candidates[place].index(int(part.removeprefix("from")))
                is_used &= (choice["parents"][place] == position).any()
            return jnp.where(is_used, 0, 1)[None].astype(jnp.int32)

        def leaf_rows(path, leaf):
            del leaf
            place = self._place(path[0].key)
            return WHOLE if place is None else row(place, path[1].key)

        return jax.tree_util.tree_map_with_path(leaf_rows, tree)

    def bank_keys(self, path: tuple[str, ...]) -> list[tuple] | None:
        """List what the row of the bank at `path` is: (None, permuted block, None).

        Returns:
          None for a leaf that is no bank.
        """
        place = self._place(path[0])
        return None if place is None else [(None, place, None)]

    def extract(self, tree: PyTree, choice: dict[str, np.ndarray], depths=None) -> PyTree:
        """Cut the stand-alone network of one path out of a backbone's params or statistics.

        Args:
          tree: `params` or `batch_stats` of the backbone.
          choice: the path, NumPy: what there is depends on it.
          depths: not used.
        """
        del depths
        parents = self.spec.parents_of(choice)
        network, kept = connections.connected(self.arch, parents)
        parts = {name: part for name, part in tree.items() if self._place(name) is None}
        for node, index in zip(network.nodes(), kept, strict=True):
            if node.place is None:
                continue
            pair, block = parents[index - len(self.arch.stem)], _row(tree[f"block{index}"])
            parts[node.name] = {
                **{name: leaves for name, leaves in block.items() if name.startswith("repeat")},
                **{f"resample{slot}": block[f"from{parent}"] for slot, parent in enumerate(pair)},
            }
        return parts

    def _place(self, part):
        """Return the index of a permuted block by its name; None for another part."""
        if not part.startswith("block"):
            return None
        place = int(part.removeprefix("block")) - len(self.arch.stem)
        return place if place >= 0 else None


class ConnectionBackbone(ScalePermutedBackbone, kw_only=True):
    """The pyramid of the path that `choice` describes (`ConnectionSupernetSpec.choice`).

    Attributes:
      spec: what the supernet holds.
    """

    spec: ConnectionSupernetSpec

    def block(self, node: Node, size: tuple[int, int], choice):
        if node.place is None:
            return super().block(node, size, choice)
        place, arch = node.place, self.arch
        read, extras = self.spec.candidates[place], self.spec.extras[place]
        ways = tuple(
            resample_shape(arch, parent, arch.nodes()[parent], arch.blocks[place])
            for parent in read
        )
        block = ConnectionBlock(
            node, size, self.depth(node), (node.dilation,), ways, self.remat, name=node.name
        )
        added = choice["extras"][place, np.array(extras, np.int32)]
        return block, read + extras, (choice["parents"][place], added)


class ConnectionBlock(ScaleBlock):
    """A block that reads two of several blocks.

    Attributes:
      ways: how each candidate is brought to the block.
      remat: recompute the repeats in the backward pass; the ways always are.
    """

    ways: tuple[ResampleShape, ...] = ()
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        inputs: tuple[Float[Array, "batch _ _ _"], ...],
        parents: Int[ArrayLike, "2"],
        extras: Bool[ArrayLike, " extras"],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        """Return the block's output.

        Args:
          inputs: the outputs of the candidates, then of the blocks that may be added as they are.
          parents: the two that are read, indices into `ways`.
          extras: which of the others are added.
          norm: what normalisation layers need.
        """
        features, others = inputs[: len(self.ways)], inputs[len(self.ways) :]
        merged = [jnp.where(extras[i], other, 0) for i, other in enumerate(others)]
        params, variables = zip(*map(self._way, self.ways), strict=True)
        stats = tuple(variable.value for variable in variables)
        way_of = switched([self._branch(index) for index in range(len(self.ways))])
        for slot in range(2):
            x, stats = way_of(parents[slot], (features, params), (stats, norm))
            merged.append(x)
        if norm.mode.momentum is not None and not self.is_initializing():
            for variable, new in zip(variables, stats, strict=True):
                variable.value = lax.stop_gradient(new)
        repeat_class = nn.remat(Repeat) if self.remat else Repeat
        repeat_class = in_row(repeat_class, lambda path: True, self.is_initializing())
        return self.repeats(repeat_class, norm.activate(sum(merged)), jnp.int32(0), norm)

    def _way(self, shape):
        """Return the parameters and the statistics of a way, each leaf with an axis of one row."""
        name = f"from{shape.parent}"
        params = self.param(name, lambda key: _init_way(shape, key)["params"])
        return params, self.variable(
            "batch_stats", name, lambda: _init_way(shape, jax.random.key(0))["batch_stats"]
        )

    def _branch(self, index):
        way = Resample(self.ways[index], self.size, in_control_flow=True, parent=None)

        def run(operands, constants):
            (features, params), (stats, norm) = operands, constants
            variables = {"params": gathered(_row(params[index])), "batch_stats": _row(stats[index])}
            y, updated = way.apply(variables, features[index], norm, mutable=["batch_stats"])
            new = jax.tree.map(lambda leaf: leaf[None], updated["batch_stats"])
            return y, (*stats[:index], new, *stats[index + 1 :])

        return run


def _row(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


@functools.partial(jax.jit, static_argnums=0)  # Flax asks for their shapes in every `apply`
def _init_way(shape, key):
    """Draw the variables of a way, each leaf with an axis of one row."""
    x = jnp.zeros((1, 2, 2, shape.convolutions[0].in_channels))
    norm = Normalization(BN_RUNNING, jnp.ones(1), LayerOptions("relu"))  # any: for shapes
    variables = Resample(shape, (2, 2), parent=None).init(key, x, norm)
    return jax.tree.map(lambda leaf: leaf[None], variables)
