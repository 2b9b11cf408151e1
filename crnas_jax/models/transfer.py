"""Starting a network from another's weights: matched by name, blocks by their place."""

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.errors import UserError
from crnas_jax.models import banks
from crnas_jax.models.build import Model


def fill(model: Model, variables: PyTree, source: PyTree) -> tuple[PyTree, list[str]]:
    """Puts what `source` has into `variables` wherever name and shape agree.

    A supernet takes another supernet's banks, or a stand-alone network's blocks: block 3 of stage 2
    goes into every row of that stage's banks that stands at place 3, for every dilation.

    Args:
      model: whose variables are filled.
      variables: {"params", "batch_stats"}, of that model.
      source: the same of another network; what of it fits nowhere is not used.

    Returns:
      The filled variables (NumPy), and the names of what was not filled; where nothing below a
      name was, only that name.

    Raises:
      UserError: no kernel of the backbone was filled.
    """
    given = {_parts(path): np.asarray(leaf) for path, leaf in _leaves(jax.device_get(source))}
    filled, missing = [], {}
    for path, leaf in _leaves(jax.device_get(variables)):
        parts = _parts(path)
        leaf = np.array(leaf)
        fits = parts in given and given[parts].shape == leaf.shape
        missing[parts] = (0 if fits else 1, 1)
        if fits:
            leaf = given[parts]
        elif model.is_supernet and parts[1:2] == ("backbone",) and parts[2].startswith("stage"):
            missing[parts] = _fill_rows(model.spec, parts, leaf, given)
        filled.append(leaf)
    kernels = [
        counts for parts, counts in missing.items() if "backbone" in parts and "kernel" in parts
    ]
    if all(number == of for number, of in kernels):
        raise UserError(
            "initial weights", "backbone", "nothing in it fits this network", "check the checkpoint"
        )
    return jax.tree.unflatten(jax.tree.structure(variables), filled), _unfilled(missing)


def _leaves(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _parts(path):
    return tuple(key.key for key in path)


def _fill_rows(spec, parts, bank, given):
    """Fills the rows of a bank in place; (rows not filled, rows)."""
    collection, backbone, stage, kind, *rest = parts
    places = banks.bank_places(spec, int(stage.removeprefix("stage")) - 1, kind == "first")
    operations = len(bank) // len(places)
    missing = 0
    for row, place in enumerate(np.repeat(places, operations)):
        block = given.get((collection, backbone, stage, f"block{place + 1}", *rest))
        if block is not None and block.shape == bank.shape[1:]:
            bank[row] = block
        else:
            missing += 1
    return missing, len(bank)


def _unfilled(missing):
    """Topmost names (collections left out) below which nothing was filled, then partial banks."""
    empty, partial = {}, {}
    for parts, (number, of) in missing.items():
        for depth in range(2, len(parts) + 1):
            name = parts[1:depth]
            empty[name] = empty.get(name, True) and number == of
        if 0 < number < of:
            bank = "/".join(parts[1:4])
            partial[bank] = max(partial.get(bank, (0, 0)), (number, of))
    names = [
        "/".join(name) for name, none in empty.items() if none and not empty.get(name[:-1], False)
    ]
    return names + [f"{bank} ({number} of {of} rows)" for bank, (number, of) in partial.items()]
