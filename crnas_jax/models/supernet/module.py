"""The one-shot supernet: one program for all paths (see `banks` for where the weights are).

A stage is a `lax.scan` over as many places as its deepest candidate has, each a `lax.switch`
between skipping and the block, whose searched convolution is again a `lax.switch` over dilations. A
skipped block is skipped inside the conditional: computing and masking it would move its statistics.
Skipping is branch 0, because until jaxlib 0.11.1 a pass-through branch copied its operands unless
it came first.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from crnas_jax.models.backbones.staged import Backbone, Block
from crnas_jax.models.layers import CONV_OUTPUT, BNMode
from crnas_jax.models.supernet.banks import OPERATION_MODULES, SupernetSpec, stage_codes


class Supernet(Backbone):
    """c2..c5 of the path whose blocks stand in the variables (see `gather`).

    `choice` is as `SupernetSpec.choice` makes it.
    """

    spec: SupernetSpec

    @property
    def arch(self):
        return self.spec.deepest

    def make_stage(self, stage, name):
        return SuperStage(self.spec, stage, self.remat, name=name)

    def stage_operands(self, choice, stage):
        return stage_codes(self.spec, choice, stage)


class SuperStage(nn.Module):
    """One stage: its first block, then a scan over the places for further ones."""

    spec: SupernetSpec
    stage: int
    remat: bool

    @nn.compact
    def __call__(self, x, active, operations, mode: BNMode, weight):
        first, first_params, first_stats = self._stacked("first", 1)

        def run(block, x, params, stats, operation):
            y, updated = block.apply(
                {"params": params, "batch_stats": stats},
                x,
                operation,
                mode,
                weight,
                mutable=["batch_stats"],
            )
            return y, updated["batch_stats"]

        run_first = jax.checkpoint(run, static_argnums=(0,)) if self.remat else run
        only = [
            jax.tree.map(lambda leaf: leaf[0], tree) for tree in (first_params, first_stats.value)
        ]
        x, stats = run_first(first, x, *only, operations[0])
        self._store(first_stats, jax.tree.map(lambda leaf: leaf[None], stats), mode)
        if self.spec.places[self.stage] == 1:
            return x

        rest, rest_params, rest_stats = self._stacked("rest", self.spec.places[self.stage] - 1)
        # What a scan keeps for its backward pass the compiler cannot merge: of a block that is
        # every intermediate array, twice the memory of a network without control flow. Convolution
        # outputs are enough; normalisation and ReLU are recomputed from them at next to no cost.
        kept = () if self.remat else (CONV_OUTPUT,)
        run_rest = jax.checkpoint(
            run,
            static_argnums=(0,),
            prevent_cse=False,  # forward and backward are separate loops
            policy=jax.checkpoint_policies.save_only_these_names(*kept),
        )

        def place(x, block):
            params, stats, here, operation = block
            return lax.switch(
                here.astype(jnp.int32),
                [
                    lambda x, params, stats, operation: (x, stats),
                    lambda *operands: run_rest(rest, *operands),
                ],
                *(x, params, stats, operation),
            )

        blocks = (rest_params, rest_stats.value, active[1:], operations[1:])
        x, stats = lax.scan(place, x, blocks)
        self._store(rest_stats, stats, mode)
        return x

    def _stacked(self, kind, places):
        """The block module of this kind, its stacked parameters and statistics."""
        shape = self.spec.deepest.block(self.stage, first=kind == "first")
        block = Block(shape, self.spec.dilations, in_control_flow=True, parent=None)

        def init(key, places=places):
            return _init_blocks(block, key, places)

        params = self.param(kind, lambda key: init(key)["params"])
        stats = self.variable("batch_stats", kind, lambda: init(jax.random.key(0))["batch_stats"])
        return block, params, stats

    def _store(self, variable, stats, mode):
        if mode.momentum is not None and not self.is_initializing():
            variable.value = stats


def _init_blocks(block, key, number):
    """Variables of `number` independent blocks, stacked."""
    x = jnp.zeros((1, 2, 2, block.shape.in_channels))
    mode = BNMode(use_batch=False, momentum=None)
    return jax.vmap(lambda key: block.init(key, x, 0, mode, jnp.ones(1)))(
        jax.random.split(key, number)
    )


def init_banks(spec: SupernetSpec, key: Array, path_variables: PyTree) -> PyTree:
    """The backbone's variables, one path's blocks replaced by freshly drawn banks.

    Args:
      spec: of the supernet.
      key: of the draw.
      path_variables: `params` and `batch_stats` of `Supernet.init`, one path's.
    """
    banks = jax.tree.map(lambda leaf: leaf, path_variables)
    for stage in range(len(spec.places)):
        for kind in ("first", "rest"):
            name = f"stage{stage + 1}"
            if kind not in banks["params"][name]:
                continue
            shape = spec.deepest.block(stage, first=kind == "first")
            block = Block(shape, spec.dilations, parent=None)
            number = spec.bank_rows(stage, first=kind == "first")
            operations = len(spec.dilations) if spec.owns_kernels else 1
            # One draw per (block, operation); modules no operation owns keep the first.
            drawn = _init_blocks(
                block,
                jax.random.fold_in(key, 2 * stage + (kind == "rest")),
                number * operations,
            )
            for collection, modules in drawn.items():
                for module, leaves in modules.items():
                    step = 1 if module in OPERATION_MODULES else operations
                    banks[collection][name][kind][module] = jax.tree.map(
                        lambda leaf, s=step: leaf[::s], leaves
                    )
    return banks
