"""The one-shot supernet: banks of block weights, and one program for all paths.

A supernet keeps the weights of all its blocks in banks, stacked along a leading axis. A path is
data: `rows` says which row of each bank stands at which place, `gather` takes them out, the network
runs on them, and `scatter` puts them back. So a training step differentiates and updates only
the sampled blocks (a gradient over the whole bank would be most of a small step's time), and what
was not sampled cannot move. Both sharing rules of each level are nothing but another `rows`:

- stages, `branch`: each candidate depth owns its blocks (figure 2 of the paper, the default);
  `prefix`: a branch of k blocks is the first k blocks of the deepest one.
- dilations, `own`: each owns the kernel of `conv2` and the statistics behind it (the default);
  `shared`: one kernel serves all.

Inside the network a stage is a `lax.scan` over as many places as its deepest candidate has, each
a `lax.switch` between skipping and the block, whose searched convolution is again a `lax.switch`
over dilations. A skipped block is skipped inside the conditional: computing and masking it would
move its statistics. Skipping is branch 0, because until jaxlib 0.11.1 a pass-through branch
copied its operands unless it came first.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from crnas_jax.arch import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.layers import CONV_OUTPUT, BNMode
from crnas_jax.models.resnet import Block, Stem, block_options
from crnas_jax.search_space import OperationSpace, StageSpace

STAGE_SHARING = ("branch", "prefix")
KERNEL_SHARING = ("own", "shared")
# The modules of a block that a dilation owns under the rule `own`.
OPERATION_MODULES = ("conv2", "bn2")
# In a tree of rows: a scalar, this leaf is not a bank and is taken whole.
WHOLE = np.int32(-1)


@dataclasses.dataclass(frozen=True)
class SupernetSpec:
    """What a supernet holds.

    Attributes:
      family: of `Arch`.
      widths: of `Arch`, of the supernet itself (the paper halves the target network's).
      grids: candidate depths for each stage; a single one each for an operation supernet.
      dilations: candidates for each block; a single one for a stage supernet.
      stage_sharing: `branch` or `prefix`.
      kernel_sharing: `own` or `shared`.
    """

    family: str
    widths: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]
    dilations: tuple[int, ...] = (1,)
    stage_sharing: str = "branch"
    kernel_sharing: str = "own"

    def __post_init__(self):
        for field, allowed in (
            ("stage_sharing", STAGE_SHARING),
            ("kernel_sharing", KERNEL_SHARING),
        ):
            if getattr(self, field) not in allowed:
                raise UserError(
                    "supernet",
                    field,
                    f"{getattr(self, field)!r} is unknown",
                    f"use one of {allowed}",
                )

    @property
    def places(self) -> tuple[int, ...]:
        """Places for blocks in each stage: its greatest depth."""
        return tuple(max(grid) for grid in self.grids)

    @property
    def deepest(self) -> Arch:
        """The architecture that fills every place."""
        return Arch(self.family, self.places, widths=self.widths)

    @property
    def owns_kernels(self) -> bool:
        """Whether the modules of an operation have a row for each operation."""
        return self.kernel_sharing == "own" and len(self.dilations) > 1

    def bank_rows(self, stage: int, first: bool) -> int:
        """Rows of the bank of a stage's first or later blocks, operations not counted."""
        grid = self.grids[stage]
        if self.stage_sharing == "prefix":
            return 1 if first else max(grid) - 1
        return len(grid) if first else sum(grid) - len(grid)

    def choice(self, depths, operations=None) -> dict[str, np.ndarray]:
        """The path of one subnet: `branch` int32 [4] and `ops` int32 [places in all].

        Args:
          depths: blocks per stage, on the grids.
          operations: an index into `dilations` for every block of the subnet; zeros when None.

        Raises:
          UserError: not a path of this supernet.
        """
        branch = StageSpace(self.grids).branch(depths)
        operations = [0] * sum(depths) if operations is None else operations
        operations = OperationSpace(tuple(depths), self.dilations).validate(operations).tolist()
        padded = []
        for depth, places in zip(depths, self.places, strict=True):
            padded += operations[:depth] + [0] * (places - depth)
            operations = operations[depth:]
        return {"branch": branch, "ops": np.array(padded, np.int32)}


def bank_places(spec: SupernetSpec, stage: int, first: bool) -> np.ndarray:
    """The place (0-based) in its stage of every row of a bank, operations not counted."""
    if first:
        return np.zeros(spec.bank_rows(stage, first), int)
    grid = (spec.places[stage],) if spec.stage_sharing == "prefix" else spec.grids[stage]
    return np.concatenate([np.arange(1, depth) for depth in grid])


def stage_codes(spec: SupernetSpec, choice: dict[str, Array], stage: int) -> tuple[Array, Array]:
    """Whether each place of a stage holds a block of the path, and its operation, each [places]."""
    start = sum(spec.places[:stage])
    places = spec.places[stage]
    depth = jnp.asarray(spec.grids[stage])[choice["branch"][stage]]
    return jnp.arange(places) < depth, choice["ops"][start : start + places]


def rows(spec: SupernetSpec, tree: PyTree, choice: dict[str, Array]) -> PyTree:
    """For each leaf of a backbone's banks the rows that the path puts at its places.

    Returns:
      A tree of the same form: int32 [places of that bank], with the bank's length (no row) where
      the path has no block; `WHOLE` for what is not a bank.
    """

    def leaf_rows(path, leaf):
        stage_name, kind, module = ([key.key for key in path] + [""] * 3)[:3]
        if not stage_name.startswith("stage"):
            return WHOLE
        stage = int(stage_name.removeprefix("stage")) - 1
        active, operations = stage_codes(spec, choice, stage)
        branch = choice["branch"][stage]
        if kind == "first":
            active, operations = active[:1], operations[:1]
            index = branch[None] if spec.stage_sharing == "branch" else jnp.zeros(1, jnp.int32)
        else:
            active, operations = active[1:], operations[1:]
            grid = np.asarray(spec.grids[stage])
            starts = jnp.asarray(np.cumsum(grid - 1) - (grid - 1))
            start = starts[branch] if spec.stage_sharing == "branch" else 0
            index = start + jnp.arange(spec.places[stage] - 1)
        if spec.owns_kernels and module in OPERATION_MODULES:
            index = index * len(spec.dilations) + operations
        return jnp.where(active, index, leaf.shape[0])

    return jax.tree_util.tree_map_with_path(leaf_rows, tree)


def gather(banks: PyTree, where: PyTree) -> PyTree:
    """The blocks of a path by place; unused places hold blocks that will not be run."""

    def take(index, bank):
        return jnp.take(bank, index, axis=0, mode="clip") if np.ndim(index) else bank

    return jax.tree.map(take, where, banks)


def scatter(banks: PyTree, where: PyTree, blocks: PyTree) -> PyTree:
    """The banks with a path's blocks put back; other rows stay as they are, bit for bit."""

    def put(index, bank, block):
        return bank.at[index].set(block, mode="drop") if np.ndim(index) else block

    return jax.tree.map(put, where, banks, blocks)


class Supernet(nn.Module):
    """c2..c5 of the path whose blocks stand in the variables (see `gather`).

    Attributes:
      spec: what it holds.
      remat: recompute blocks in the backward pass instead of keeping what is inside them.
    """

    spec: SupernetSpec
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width 3"],
        choice: dict[str, Int[Array, " entries"]],
        mode: BNMode,
        weight: Float[Array, " batch"],
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Args as `ResNet`; `choice` as `SupernetSpec.choice` makes it."""
        x = Stem(self.spec.widths[0], name="stem")(x, mode, weight)
        features = []
        for stage in range(4):
            active, operations = stage_codes(self.spec, choice, stage)
            x = SuperStage(self.spec, stage, self.remat, name=f"stage{stage + 1}")(
                x, active, operations, mode, weight
            )
            features.append(x)
        return tuple(features)


class SuperStage(nn.Module):
    """One stage: its first block, then a scan over the places for further ones."""

    spec: SupernetSpec
    stage: int
    remat: bool

    @nn.compact
    def __call__(self, x, active, operations, mode: BNMode, weight):
        first, first_params, first_stats = self._stacked("first", 1, x)

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

        rest, rest_params, rest_stats = self._stacked("rest", self.spec.places[self.stage] - 1, x)
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

    def _stacked(self, kind, places, x):
        """The block module of this kind, its stacked parameters and statistics."""
        options = block_options(self.spec.deepest, self.stage, first=kind == "first")
        block = Block(**options, dilations=self.spec.dilations, in_control_flow=True, parent=None)

        def init(key, places=places):
            return _init_blocks(block, key, places, x.shape[-1])

        params = self.param(kind, lambda key: init(key)["params"])
        stats = self.variable("batch_stats", kind, lambda: init(jax.random.key(0))["batch_stats"])
        return block, params, stats

    def _store(self, variable, stats, mode):
        if mode.momentum is not None and not self.is_initializing():
            variable.value = stats


def _init_blocks(block, key, number, channels):
    """Variables of `number` independent blocks, stacked."""
    x = jnp.zeros((1, 2, 2, channels))
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
    for stage in range(4):
        for kind in ("first", "rest"):
            name = f"stage{stage + 1}"
            if kind not in banks["params"][name]:
                continue
            options = block_options(spec.deepest, stage, first=kind == "first")
            block = Block(**options, dilations=spec.dilations, parent=None)
            channels = path_variables["params"][name][kind]["conv1"]["kernel"].shape[-2]
            number = spec.bank_rows(stage, first=kind == "first")
            operations = len(spec.dilations) if spec.owns_kernels else 1
            # One draw per (block, operation); modules no operation owns keep the first.
            drawn = _init_blocks(
                block,
                jax.random.fold_in(key, 2 * stage + (kind == "rest")),
                number * operations,
                channels,
            )
            for collection, modules in drawn.items():
                for module, leaves in modules.items():
                    step = 1 if module in OPERATION_MODULES else operations
                    banks[collection][name][kind][module] = jax.tree.map(
                        lambda leaf, s=step: leaf[::s], leaves
                    )
    return banks


def extract(spec: SupernetSpec, backbone: PyTree, choice: dict[str, Array], depths) -> PyTree:
    """The stand-alone network's tree for one path of a supernet's backbone.

    Args:
      spec: of the supernet.
      backbone: `params` or `batch_stats` of the supernet's backbone: banks.
      choice: the path.
      depths: its blocks per stage.

    Returns:
      The same with `stage1/block1` .. `stage4/blockN` in place of banks.
    """
    path = gather(backbone, rows(spec, backbone, choice))
    network = {name: tree for name, tree in path.items() if not name.startswith("stage")}
    for stage, depth in enumerate(depths):
        kinds = path[f"stage{stage + 1}"]
        blocks = {"block1": jax.tree.map(lambda leaf: leaf[0], kinds["first"])}
        for index in range(1, depth):
            blocks[f"block{index + 1}"] = jax.tree.map(
                lambda leaf, i=index: leaf[i - 1], kinds["rest"]
            )
        network[f"stage{stage + 1}"] = blocks
    return network
