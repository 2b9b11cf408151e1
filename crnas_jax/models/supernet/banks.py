"""The banks of a supernet: which of its blocks stands at which place of a path.

A supernet keeps the weights of all its blocks in banks, stacked along a leading axis. A path is
data: `rows` tells which row of each bank stands at which place, `gather` takes those rows, the
network runs on them, and `scatter` writes them back. So a training step differentiates and updates
only the sampled blocks (a gradient over the whole bank would be most of a small step's time), and
blocks that were not sampled cannot move. All sharing rules are nothing but different `rows`:

- stages, `branch`: each candidate depth owns its blocks (figure 2 of the paper);
  `prefix`: a branch of k blocks is the first k blocks of the deepest one.
- dilations, `own`: each owns the kernel of `conv2` and the statistics after it;
  `shared`: one kernel serves all.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from crnas_jax.arch.families import FAMILIES
from crnas_jax.arch.staged import Arch
from crnas_jax.runtime.options import check_choice
from crnas_jax.spaces.draws import DRAWS, balanced, step_rng
from crnas_jax.spaces.operations import TIES, OperationSpace
from crnas_jax.spaces.stages import StageSpace

STAGE_SHARING = ("branch", "prefix")
KERNEL_SHARING = ("own", "shared")
# Modules of a block that each dilation owns under the rule `own`.
OPERATION_MODULES = ("conv2", "bn2")
# In a tree of rows, the scalar for a leaf that is not a bank and is used whole.
WHOLE = np.int32(-1)


@dataclasses.dataclass(frozen=True)
class SupernetSpec:
    """What a supernet holds.

    Attributes:
      family: key of `families.FAMILIES`.
      widths: width of every stage of the supernet (the paper halves ResNet's and ResNeXt's).
      grids: candidate depths for each searched stage; a single one each for an operation supernet.
      dilations: candidates for each block; a single one for a stage supernet.
      stage_sharing: `branch` or `prefix`.
      kernel_sharing: `own` or `shared`.
      tie: see `OperationSpace`; what training draws, any code can be scored.
      draws: how training draws paths, one of `draws.DRAWS`.
    """

    family: str
    widths: tuple[int, ...]
    grids: tuple[tuple[int, ...], ...]
    dilations: tuple[int, ...] = (1,)
    stage_sharing: str = "branch"
    kernel_sharing: str = "own"
    tie: str = "block"
    draws: str = "balanced"

    def __post_init__(self):
        check_choice(self, "tie", TIES)
        check_choice(self, "draws", DRAWS)
        check_choice(self, "stage_sharing", STAGE_SHARING)
        check_choice(self, "kernel_sharing", KERNEL_SHARING)

    @property
    def stages(self) -> StageSpace:
        """All allocations on the grids."""
        return StageSpace.for_family(self.family, self.grids)

    @property
    def deepest(self) -> Arch:
        """The architecture that fills every place."""
        return self.arch(max(grid) for grid in self.grids)

    @property
    def places(self) -> tuple[int, ...]:
        """Number of places for blocks in each stage, fixed stages included: its greatest depth."""
        return self.deepest.stage_depths

    def arch(self, depths, operations=None) -> Arch:
        """Return the stand-alone architecture of a path, at the supernet's widths."""
        dilations = tuple(self.dilations[operation] for operation in operations or ())
        return Arch(self.family, tuple(depths), dilations, self.widths)

    def grid(self, stage: int) -> tuple[int, ...]:
        """Return the candidate depths of any stage; a fixed stage has the depth 1."""
        searched = FAMILIES[self.family].searched_stages
        return self.grids[searched.index(stage)] if stage in searched else (1,)

    def branch(self, choice: dict[str, ArrayLike], stage: int) -> ArrayLike:
        """Return the index into `grid(stage)` that a path takes."""
        searched = FAMILIES[self.family].searched_stages
        return choice["branch"][searched.index(stage)] if stage in searched else jnp.int32(0)

    @property
    def owns_kernels(self) -> bool:
        """Whether the modules of an operation have a row for each operation."""
        return self.kernel_sharing == "own" and len(self.dilations) > 1

    @property
    def kernels_per_block(self) -> int:
        """Count the rows that a block has in the bank of a module of `OPERATION_MODULES`."""
        return len(self.dilations) if self.owns_kernels else 1

    def num_bank_rows(self, stage: int, first: bool) -> int:
        """Count the rows in the bank of a stage's first or later blocks, operations left out."""
        grid = self.grid(stage)
        if self.stage_sharing == "prefix":
            return 1 if first else max(grid) - 1
        return len(grid) if first else sum(grid) - len(grid)

    def sample(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw the path of a training step: depths and operations independent of each other."""
        if self.draws == "uniform":
            rng = step_rng(seed, step)
            depths = self.stages.sample(rng)
            space = OperationSpace(self.arch(depths).stage_depths, self.dilations, self.tie)
            return self.choice(depths, space.operations_of(space.sample(rng)))
        depths = [
            grid[balanced(len(grid), seed, stage, step)] for stage, grid in enumerate(self.grids)
        ]
        space = OperationSpace(self.arch(depths).stage_depths, self.dilations, self.tie)
        code = [
            balanced(space.num_operations, seed, len(self.grids) + entry, step)
            for entry in range(space.num_blocks)
        ]
        return self.choice(depths, space.operations_of(code))

    def choice_of(self, arch: Arch) -> dict[str, np.ndarray]:
        """Return the path that is a network, whose depths and dilations are all candidates."""
        return self.choice(arch.depths, [self.dilations.index(d) for d in arch.dilations])

    def choice(self, depths, operations=None) -> dict[str, np.ndarray]:
        """Return the path of a subnet: `branch` int32 [searched stages], `ops` int32 [places].

        Args:
          depths: number of blocks in each searched stage, on the grids.
          operations: an index into `dilations` for every block of the subnet; zeros when None.

        Raises:
          UserError: this supernet has no such path.
        """
        branch = self.stages.branch(depths)
        all_depths = self.arch(depths).stage_depths
        operations = [0] * sum(all_depths) if operations is None else operations
        operations = OperationSpace(all_depths, self.dilations).validate(operations).tolist()
        padded = []
        for depth, places in zip(all_depths, self.places, strict=True):
            padded += operations[:depth] + [0] * (places - depth)
            operations = operations[depth:]
        return {"branch": branch, "ops": np.array(padded, np.int32)}


def bank_keys(spec: SupernetSpec, stage: int, first: bool, module: str) -> list[tuple]:
    """List what every row of a bank is: (depth of its branch, place in the stage, dilation).

    The depth is None where branches share blocks, the dilation None where dilations share this
    module.
    """
    owned = spec.owns_kernels and module in OPERATION_MODULES
    dilations = spec.dilations if owned else (None,)
    if spec.stage_sharing == "prefix":
        branches = [(None, spec.places[stage])]
    else:
        branches = [(depth, depth) for depth in spec.grid(stage)]
    return [
        (branch, place, dilation)
        for branch, depth in branches
        for place in ([0] if first else range(1, depth))
        for dilation in dilations
    ]


def place_codes(
    spec: SupernetSpec, choice: dict[str, ArrayLike], stage: int
) -> tuple[Array, ArrayLike]:
    """Return whether each place of a stage holds a block, and its operation, both [places]."""
    start = sum(spec.places[:stage])
    places = spec.places[stage]
    depth = jnp.asarray(spec.grid(stage))[spec.branch(choice, stage)]
    return jnp.arange(places) < depth, choice["ops"][start : start + places]


def block_operations(
    spec: SupernetSpec, choice: dict[str, np.ndarray], stage: int
) -> tuple[int, ...]:
    """Return the operation of each block that a path has in a stage; runs on the host."""
    start = sum(spec.places[:stage])
    depth = spec.grid(stage)[int(spec.branch(choice, stage))]
    return tuple(choice["ops"][start : start + depth].tolist())


def bank_place(path: tuple[str, ...]) -> tuple[int, bool, str] | None:
    """Read a backbone's parameter path: (stage, whether first blocks, module of the block).

    Returns:
      None for a leaf that is no bank.
    """
    stage_name, kind, module = (*path, "", "", "")[:3]
    if not stage_name.startswith("stage"):
        return None
    return int(stage_name.removeprefix("stage")) - 1, kind == "first", module


def rows(spec: SupernetSpec, tree: PyTree, choice: dict[str, ArrayLike]) -> PyTree:
    """Find the rows that a path puts at its places, for each leaf of a backbone's banks.

    Returns:
      A tree of the same structure: int32 [places of that bank], with the bank's length (no row)
      where the path has no block; `WHOLE` for a leaf that is no bank.
    """

    @functools.cache  # a bank has many leaves
    def bank_rows(stage, first, owns_kernels, num_rows):
        active, operations = place_codes(spec, choice, stage)
        branch = spec.branch(choice, stage)
        if first:
            active, operations = active[:1], operations[:1]
            index = branch[None] if spec.stage_sharing == "branch" else jnp.zeros(1, jnp.int32)
        else:
            active, operations = active[1:], operations[1:]
            grid = np.asarray(spec.grid(stage))
            starts = jnp.asarray(np.cumsum(grid - 1) - (grid - 1))
            start = starts[branch] if spec.stage_sharing == "branch" else 0
            index = start + jnp.arange(spec.places[stage] - 1)
        if owns_kernels:
            index = index * len(spec.dilations) + operations
        return jnp.where(active, index, num_rows)

    def leaf_rows(path, leaf):
        place = bank_place(tuple(key.key for key in path))
        if place is None:
            return WHOLE
        stage, first, module = place
        owns_kernels = spec.owns_kernels and module in OPERATION_MODULES
        return bank_rows(stage, first, owns_kernels, leaf.shape[0])

    return jax.tree_util.tree_map_with_path(leaf_rows, tree)


def gather(banks: PyTree, where: PyTree) -> PyTree:
    """Take the blocks of a path by place; unused places hold blocks that will not be run."""

    def take(index, bank):
        return jnp.take(bank, index, axis=0, mode="clip") if np.ndim(index) else bank

    return jax.tree.map(take, where, banks)


def scatter(banks: PyTree, where: PyTree, blocks: PyTree) -> PyTree:
    """Write a path's blocks back into the banks; other rows stay as they are, bit for bit."""

    def put(index, bank, block):
        return bank.at[index].set(block, mode="drop") if np.ndim(index) else block

    return jax.tree.map(put, where, banks, blocks)


def extract(spec: SupernetSpec, backbone: PyTree, choice: dict[str, ArrayLike], depths) -> PyTree:
    """Cut the stand-alone network of one path out of a supernet's backbone.

    Args:
      spec: the supernet's description.
      backbone: `params` or `batch_stats` of its backbone, with banks.
      choice: the path.
      depths: number of blocks in each searched stage of the path.

    Returns:
      The same tree with `stage1/block1` .. `stage4/blockN` in place of banks.
    """
    path = gather(backbone, rows(spec, backbone, choice))
    network = {name: tree for name, tree in path.items() if bank_place((name,)) is None}
    for part in spec.arch(depths).stages:
        kinds = path[part.name]
        blocks = {"block1": jax.tree.map(lambda leaf: leaf[0], kinds["first"])}
        for index in range(1, len(part.units)):
            blocks[f"block{index + 1}"] = jax.tree.map(
                lambda leaf, i=index: leaf[i - 1], kinds["rest"]
            )
        network[part.name] = blocks
    return network
