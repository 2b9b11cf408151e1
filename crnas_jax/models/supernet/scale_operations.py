"""A supernet over the dilations of a scale-permuted network: one program for all paths.

Each permuted block is run on the variables of one path, and its 3x3 convolutions are a `lax.switch`
over dilations (`ops.convolution.switched_conv`). Under the rule `own` of `banks` each dilation owns
their kernels and the normalisations after them: those leaves are banks with a row for each
dilation, of which a path has one.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.arch.scale_shapes import Node
from crnas_jax.models.backbones.scale_permuted import ScaleBlock, ScalePermutedBackbone
from crnas_jax.models.layers import fan_in_normal
from crnas_jax.models.supernet.banks import KERNEL_SHARING, WHOLE, gather
from crnas_jax.models.supernet.functions import SupernetFunctions
from crnas_jax.models.supernet.rows import in_row, without_row
from crnas_jax.runtime.options import check_choice
from crnas_jax.spaces.draws import DRAWS, balanced, step_rng
from crnas_jax.spaces.operations import PermutedOperationSpace


@dataclasses.dataclass(frozen=True)
class ScaleSupernetSpec:
    """What a supernet over the dilations of a scale-permuted network holds.

    Attributes:
      arch: the network without dilation.
      dilations: candidates for each permuted block.
      kernel_sharing: `own` or `shared`, see `banks`.
      tie: see `PermutedOperationSpace`; what training draws, any code can be scored.
      draws: how training draws paths, one of `draws.DRAWS`.

    Raises:
      UserError: a field has no such value.
    """

    arch: ScalePermuted
    dilations: tuple[int, ...] = (1, 2, 3)
    kernel_sharing: str = "own"
    tie: str = "block"
    draws: str = "balanced"

    def __post_init__(self):
        check_choice(self, "draws", DRAWS)
        check_choice(self, "kernel_sharing", KERNEL_SHARING)
        object.__setattr__(self, "arch", dataclasses.replace(self.arch, dilations=()))
        object.__setattr__(self, "dilations", tuple(self.dilations))
        self.space  # noqa: B018 (it checks the others)

    @property
    def space(self) -> PermutedOperationSpace:
        """The codes of the searches."""
        return self._space(self.tie)

    def _space(self, tie):
        levels = tuple(block.level for block in self.arch.blocks)
        return PermutedOperationSpace.of_levels(levels, self.dilations, tie)

    @property
    def owns_kernels(self) -> bool:
        """Whether the searched modules have a row for each operation."""
        return self.kernel_sharing == "own" and len(self.dilations) > 1

    def network(self, operations) -> ScalePermuted:
        """Return the stand-alone architecture of a path; arguments as `choice`."""
        operations = self._space("block").validate(operations).tolist()
        dilations = tuple(self.dilations[operation] for operation in operations)
        return dataclasses.replace(self.arch, dilations=dilations)

    def choice_of(self, arch: ScalePermuted) -> dict[str, np.ndarray]:
        """Return the path that is a network, whose dilations are all candidates."""
        return self.choice([self.dilations.index(d) for d in arch.block_dilations])

    def sample(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw the path of a training step."""
        space = self.space
        if self.draws == "uniform":
            return self.choice(space.operations_of(space.sample(step_rng(seed, step))))
        entries = range(space.num_blocks)
        code = [balanced(space.num_operations, seed, entry, step) for entry in entries]
        return self.choice(space.operations_of(code))

    def choice(self, operations) -> dict[str, np.ndarray]:
        """Return the path of a subnet: `ops` int32 [permuted blocks].

        Args:
          operations: an index into `dilations` for every permuted block.

        Raises:
          UserError: this supernet has no such path.
        """
        return {"ops": self._space("block").validate(operations)}


@dataclasses.dataclass(frozen=True)
class ScaleSupernet(SupernetFunctions):
    """The supernet over dilations as functions on its banks."""

    spec: ScaleSupernetSpec

    kind = "scale_permuted"

    @property
    def module(self) -> nn.Module:
        """The Flax module, which runs on the variables of one path."""
        return ScaleSupernetBackbone(self.arch, self.remat, self.freeze, spec=self.spec)

    @property
    def example_choice(self) -> dict[str, np.ndarray]:
        """The path of the first operations: for shapes."""
        return self.spec.choice([0] * len(self.arch.blocks))

    def init(self, key: Array, path_variables: PyTree) -> PyTree:
        """Return `path_variables` ({"params", "batch_stats"}) with freshly drawn banks."""
        num_rows = len(self.spec.dilations)
        places = iter(range(len(jax.tree.leaves(path_variables))))

        def draw(path, leaf):
            place, names = next(places), _names(path)[1:]
            if self._bank_place(names) is None:
                return leaf
            if names[-1] != "kernel":  # all rows start alike
                return jnp.repeat(leaf, num_rows, axis=0)
            keys = jax.random.split(jax.random.fold_in(key, place), num_rows)
            return jax.vmap(lambda key: fan_in_normal(key, leaf.shape[1:], leaf.dtype))(keys)

        return jax.tree_util.tree_map_with_path(draw, path_variables)

    def rows(self, tree: PyTree, choice: dict[str, ArrayLike]) -> PyTree:
        """Find the row of each bank in `tree` that a path uses, int32 [1]; `WHOLE` elsewhere."""

        def leaf_rows(path, leaf):
            del leaf
            place = self._bank_place(_names(path))
            return WHOLE if place is None else choice["ops"][place : place + 1]

        return jax.tree_util.tree_map_with_path(leaf_rows, tree)

    def bank_keys(self, path: tuple[str, ...]) -> list[tuple] | None:
        """List what the rows of the bank at `path` are: (None, permuted block, dilation).

        Returns:
          None for a leaf that is no bank.
        """
        place, dilations = self._bank_place(path), self.spec.dilations
        return None if place is None else [(None, place, dilation) for dilation in dilations]

    def extract(self, tree: PyTree, choice: dict[str, ArrayLike], depths=None) -> PyTree:
        """Cut the stand-alone network of one path out of a backbone's params or statistics."""
        del depths  # a path of stages has them
        path = gather(tree, self.rows(tree, choice))
        return without_row(path, lambda names: self._bank_place(names) is not None)

    def _bank_place(self, path):
        """Return the permuted block of a bank; None for a leaf that is no bank."""
        if not self.spec.owns_kernels or not path[0].startswith("block"):
            return None
        place = int(path[0].removeprefix("block")) - len(self.arch.stem)
        return place if place >= 0 and is_searched(self.arch, place, path[1:]) else None


class ScaleSupernetBackbone(ScalePermutedBackbone, kw_only=True):
    """The pyramid of the path whose blocks stand in the variables.

    `choice` is what `ScaleSupernetSpec.choice` returns.

    Attributes:
      spec: what the supernet holds.
    """

    spec: ScaleSupernetSpec

    def block(self, node: Node, size: tuple[int, int], choice):
        if node.place is None:
            return super().block(node, size, choice)
        block_class, arch, place = ScaleBlock, self.arch, node.place
        if self.remat:
            block_class = nn.remat(block_class)
        if self.spec.owns_kernels:
            block_class = in_row(
                block_class, lambda path: is_searched(arch, place, path), self.is_initializing()
            )
        block = block_class(node, size, self.depth(node), self.spec.dilations, name=node.name)
        read = tuple(resample.parent for resample in node.resamples) + node.extras
        return block, read, (choice["ops"][place],)


def is_searched(arch: ScalePermuted, place: int, path: tuple[str, ...]) -> bool:
    """Return whether a leaf belongs to a dilated convolution, or to the normalisation after it.

    Args:
      arch: the network.
      place: index of the permuted block.
      path: path of the leaf within the block.
    """
    if not path[0].startswith("repeat"):
        return False
    shape = arch.nodes()[len(arch.stem) + place].units[0]
    names = [conv.name for conv in shape.convolutions if conv.size > 1]
    return path[1] in [f"{kind}{name}" for kind in ("conv", "bn") for name in names]


def _names(path):
    return tuple(key.key for key in path)
