"""Modules whose variables have a leading axis of one row, as `banks.gather` takes it of a bank."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import PyTree

from crnas_jax.parallel.mesh import gathered

_COLLECTIONS = ("params", "batch_stats")


def in_row(
    module_class: type[nn.Module], is_bank: Callable[[tuple[str, ...]], bool], init: bool
) -> type[nn.Module]:
    """Return a module class of which some variables have a leading axis of one row.

    Args:
      module_class: the class, which knows nothing of rows.
      is_bank: function from a variable's path within the module to whether it has that axis.
      init: whether the variables are to be made.
    """
    return nn.map_variables(
        module_class,
        _COLLECTIONS,
        lambda tree: _map(tree, is_bank, lambda leaf: gathered(leaf[0])),
        lambda tree: _map(tree, is_bank, lambda leaf: leaf[None]),
        init=init,
        mutable=True,
    )


def without_row(tree: PyTree, is_bank: Callable[[tuple[str, ...]], bool]) -> PyTree:
    """Return a tree of which the leaves that `is_bank` names lose their leading axis of one row."""

    def drop(path, leaf):
        return leaf[0] if is_bank(tuple(key.key for key in path)) else leaf

    return jax.tree_util.tree_map_with_path(drop, tree)


def _map(tree, is_bank, function):
    """Apply a function to the banks of {collection: tree}."""

    def apply(path, leaf):
        names = tuple(key.key for key in path)
        return function(leaf) if is_bank(names[1:]) else leaf

    return jax.tree_util.tree_map_with_path(apply, tree)
