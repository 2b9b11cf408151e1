"""The one-shot supernet: one program for all paths (see `banks` for where the weights are).

A stage is a `lax.scan` over as many places as its deepest candidate has, each a `lax.switch`
between skipping and the block, whose searched convolution is again a `lax.switch` over dilations. A
skipped block is skipped inside the conditional: computing and masking it would move its statistics.
Skipping is branch 0, because until jaxlib 0.11.1 a pass-through branch copied its operands unless
it came first.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from crnas_jax.arch.staged import Arch, Part
from crnas_jax.models.backbones.staged import Block, StagedBackbone
from crnas_jax.models.layers import BN_RUNNING, CONV_OUTPUT, LayerOptions, Normalization
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.banks import OPERATION_MODULES, SupernetSpec, place_codes
from crnas_jax.models.supernet.functions import SupernetFunctions
from crnas_jax.parallel.mesh import gathered


@dataclasses.dataclass(frozen=True)
class Supernet(SupernetFunctions):
    """The supernet over stages and dilations as functions on its banks."""

    spec: SupernetSpec

    @property
    def arch(self) -> Arch:
        """The deepest path."""
        return self.spec.deepest

    @property
    def module(self) -> nn.Module:
        """The Flax module, which runs on the variables of one path."""
        return SupernetBackbone(self.arch, self.remat, self.freeze, spec=self.spec)

    @property
    def example_choice(self) -> dict[str, np.ndarray]:
        """The deepest path: for shapes."""
        return self.spec.choice(self.arch.depths)

    def init(self, key: Array, path_variables: PyTree) -> PyTree:
        """Return `path_variables` ({"params", "batch_stats"}) with freshly drawn banks."""
        return init_banks(self.spec, key, path_variables)

    def rows(self, tree: PyTree, choice: dict[str, ArrayLike]) -> PyTree:
        """Find the rows of each bank in `tree` that a path uses (`banks.rows`)."""
        return banks.rows(self.spec, tree, choice)

    def extract(self, tree: PyTree, choice: dict[str, ArrayLike], depths) -> PyTree:
        """Cut the stand-alone network of one path out of a backbone (`banks.extract`)."""
        return banks.extract(self.spec, tree, choice, depths)

    def bank_keys(self, path: tuple[str, ...]) -> list[tuple] | None:
        """List what the rows of the bank at `path` are; None for a leaf that is no bank."""
        place = banks.bank_place(path)
        return None if place is None else banks.bank_keys(self.spec, *place)


class SupernetBackbone(StagedBackbone, kw_only=True):
    """c2..c5 of the path whose blocks stand in the variables (see `banks.gather`).

    `choice` is what `SupernetSpec.choice` returns.

    Attributes:
      spec: what the supernet holds.
    """

    spec: SupernetSpec

    def stage(self, part: Part, choice) -> tuple[nn.Module, tuple]:
        module = SuperStage(self.spec, part, self.remat, name=part.name)
        return module, place_codes(self.spec, choice, part.stage)


class SuperStage(nn.Module):
    """One stage: its first block, then a scan over the places for further ones.

    Attributes:
      spec: what the supernet holds.
      part: the stage of the deepest path.
      remat: see `Supernet`.
    """

    spec: SupernetSpec
    part: Part
    remat: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        active: Bool[ArrayLike, " places"],
        operations: Int[ArrayLike, " places"],
        norm: Normalization,
    ) -> Float[Array, "batch _ _ _"]:
        first, first_params, first_stats = self._stacked("first", 1)

        def run(block, x, params, stats, operation, norm):
            y, updated = block.apply(
                {"params": gathered(params), "batch_stats": stats},
                x,
                operation,
                norm,
                mutable=["batch_stats"],
            )
            return y, updated["batch_stats"]

        run_first = jax.checkpoint(run, static_argnums=(0,)) if self.remat else run
        only_row = [
            jax.tree.map(lambda leaf: leaf[0], tree) for tree in (first_params, first_stats.value)
        ]
        x, stats = run_first(first, x, *only_row, operations[0], norm.at(1))
        self._store(first_stats, jax.tree.map(lambda leaf: leaf[None], stats), norm)
        num_places = len(self.part.units)
        if num_places == 1:
            return x

        rest, rest_params, rest_stats = self._stacked("rest", num_places - 1)
        # What a scan stores for its backward pass the compiler cannot merge: in a block that is
        # every intermediate array, twice the memory of a network without control flow. Convolution
        # outputs are enough; normalisation and ReLU are recomputed from them at next to no cost.
        stored = () if self.remat else (CONV_OUTPUT,)
        run_rest = jax.checkpoint(
            run,
            static_argnums=(0,),
            prevent_cse=False,  # forward and backward are separate loops
            policy=jax.checkpoint_policies.save_only_these_names(*stored),
        )

        def place(x, block):
            params, stats, is_active, operation, index = block
            return lax.switch(
                is_active.astype(jnp.int32),
                [
                    lambda x, params, stats, operation: (x, stats),
                    lambda *operands: run_rest(rest, *operands, norm.at(index)),
                ],
                *(x, params, stats, operation),
            )

        places = jnp.arange(2, num_places + 1)
        blocks = (rest_params, rest_stats.value, active[1:], operations[1:], places)
        x, stats = lax.scan(place, x, blocks)
        self._store(rest_stats, stats, norm)
        return x

    def _stacked(self, kind, num_places):
        """Return the block module of this kind, its stacked parameters and statistics."""
        block = supernet_block(self.spec, self.part, kind)

        def init(key):
            return _init_blocks(block, key, num_places)

        params = self.param(kind, lambda key: init(key)["params"])
        stats = self.variable("batch_stats", kind, lambda: init(jax.random.key(0))["batch_stats"])
        return block, params, stats

    def _store(self, variable, stats, norm):
        if norm.mode.momentum is not None and not self.is_initializing():
            variable.value = stats


def supernet_block(spec: SupernetSpec, part: Part, kind: str) -> Block:
    """Return the module of a stage's `first` or `rest` blocks, for use in control flow."""
    shape = part.units[0 if kind == "first" else 1]
    return Block(
        spec.deepest.traits.design,
        shape,
        spec.dilations,
        in_control_flow=True,
        level=part.resolution,
        parent=None,
    )


@functools.partial(jax.jit, static_argnums=(0, 2))  # Flax asks for their shapes in every `apply`
def _init_blocks(block, key, num_blocks):
    """Draw the variables of independent blocks, stacked."""
    x = jnp.zeros((1, 2, 2, block.shape.in_channels))
    norm = Normalization(BN_RUNNING, jnp.ones(1), LayerOptions("relu"))  # any: for shapes
    return jax.vmap(lambda key: block.init(key, x, 0, norm))(jax.random.split(key, num_blocks))


def init_banks(spec: SupernetSpec, key: Array, path_variables: PyTree) -> PyTree:
    """Return a backbone's variables with one path's blocks replaced by freshly drawn banks.

    Args:
      spec: what the supernet holds.
      key: random key.
      path_variables: `params` and `batch_stats` of one path, from `SupernetBackbone.init`.
    """
    variables = jax.tree.map(lambda leaf: leaf, path_variables)
    for part in spec.deepest.stages:
        for kind in ("first", "rest"):
            if kind not in variables["params"][part.name]:
                continue
            block = supernet_block(spec, part, kind)
            num_rows = spec.num_bank_rows(part.stage, first=kind == "first")
            # One draw per (block, operation); modules that no operation owns take the first.
            drawn = _init_blocks(
                block,
                jax.random.fold_in(key, 2 * part.stage + (kind == "rest")),
                num_rows * spec.kernels_per_block,
            )
            for collection, modules in drawn.items():
                for module, leaves in modules.items():
                    step = 1 if module in OPERATION_MODULES else spec.kernels_per_block
                    variables[collection][part.name][kind][module] = jax.tree.map(
                        lambda leaf, s=step: leaf[::s], leaves
                    )
    return variables
