"""Starting a network from another's weights: matched by name, blocks by their place."""

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.models.build import Model
from crnas_jax.models.supernet.banks import SupernetSpec, bank_keys, bank_place, extract


def fill(
    model: Model, variables: PyTree, source: PyTree, source_spec: SupernetSpec | None = None
) -> tuple[PyTree, list[str]]:
    """Copy what `source` has into `variables` wherever name and shape agree.

    A stand-alone network takes its path out of a supernet (`cut`). A supernet takes a stand-alone
    network's blocks: block 3 of stage 2 goes into every row of that
    stage's banks that stands at place 3, for every dilation. It takes another supernet's rows with
    the same branch, place and dilation; rows that the source shares between branches or dilations
    go into all of them. A scale-permuted supernet takes a stand-alone network's blocks by name,
    for every dilation; of a supernet over connections the ways between blocks start afresh.

    A block of which nothing was filled starts as its shortcut: the scale of its last batch
    normalisation becomes 0, where it has a shortcut and that scale is trained.

    Args:
      model: model that is filled.
      variables: its {"params", "batch_stats"}.
      source: the same of another network; what fits nowhere is not used.
      source_spec: description of a source with banks; without it they are not used.

    Returns:
      The filled variables (NumPy), and the names of what was not filled; where nothing below a
      name was filled, only that name.

    Raises:
      UserError: no kernel of the backbone behind its stem was filled, the source is not finite, or
        it is a supernet without the path of this network.
    """
    if source_spec is not None and isinstance(model.spec, Arch):
        source = cut(source, source_spec, model.spec)
    given = {
        _parts(path): np.asarray(leaf)
        for path, leaf in _leaves(jax.device_get(source))
        if _parts(path)[0] in ("params", "batch_stats")
    }
    if not all(np.isfinite(leaf.astype(np.float32)).all() for leaf in given.values()):
        raise UserError("initial weights", "values", "not all finite", "give other weights")
    # By name: the leaf, and whether each of its rows is missing; a leaf that is no bank has one.
    filled, missing = {}, {}
    for path, leaf in _leaves(jax.device_get(variables)):
        parts, leaf = _parts(path), np.array(leaf)
        keys = model.backbone.bank_keys(parts[2:]) if parts[1] == "backbone" else None
        if keys is not None:
            missing[parts] = _fill_rows(keys, parts, leaf, given, source_spec)
        else:
            fits = parts in given and given[parts].shape == leaf.shape
            missing[parts] = {(): not fits}
            leaf = given[parts].astype(leaf.dtype) if fits else leaf
        filled[parts] = leaf
    # Stems are alike in networks that have nothing else in common.
    kernels = [
        rows
        for parts, rows in missing.items()
        if parts[1] == "backbone" and parts[2] != "stem" and "kernel" in parts
    ]
    if all(all(rows.values()) for rows in kernels):
        raise UserError(
            "initial weights", "backbone", "nothing in it fits this network", "check the checkpoint"
        )
    _start_as_identities(model, filled, missing)
    return jax.tree.unflatten(jax.tree.structure(variables), filled.values()), _unfilled(missing)


def cut(variables: PyTree, spec: SupernetSpec, arch: Arch) -> PyTree:
    """Cut a stand-alone network out of a supernet: its path in place of the banks.

    A supernet with a single dilation has one kernel for every dilation of the network.

    Args:
      variables: the supernet's {"params", "batch_stats"}.
      spec: what the supernet holds.
      arch: the network.

    Raises:
      UserError: the supernet has no such path.
    """
    operations = None
    if arch.family != spec.family:
        raise _no_path(f"it is of family {spec.family}, this network of {arch.family}")
    if spec.widths != arch.widths:
        raise _no_path(f"its widths are {list(spec.widths)}, this network's {list(arch.widths)}")
    if len(spec.dilations) > 1:
        if not set(arch.dilations) <= set(spec.dilations):
            wanted = sorted(set(arch.dilations))
            raise _no_path(f"its dilations are {list(spec.dilations)}, this network's {wanted}")
        operations = [spec.dilations.index(dilation) for dilation in arch.dilations]
    try:
        choice = spec.choice(arch.depths, operations)
    except UserError as error:
        raise _no_path(f"{error.field} {error.problem}") from error
    return {
        collection: {**tree, "backbone": extract(spec, tree["backbone"], choice, arch.depths)}
        for collection, tree in variables.items()
        if collection in ("params", "batch_stats")
    }


def _no_path(problem):
    return UserError(
        "initial weights",
        "backbone",
        f"the supernet has no path for this network: {problem}",
        "start from a supernet that holds it, or from a network",
    )


def _leaves(tree):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _parts(path):
    return tuple(str(getattr(key, "key", key)) for key in path)


def _fill_rows(keys, parts, bank, given, source_spec):
    """Fill the rows of a bank in place; return for each key whether its row is missing."""
    collection, backbone, stage_name, _, module, *rest = parts
    source_rows = {}
    if source_spec is not None and parts in given:
        source_keys = bank_keys(source_spec, *bank_place(parts[2:]))
        source_rows = dict(zip(source_keys, given[parts], strict=True))
    missing = {}
    for row, (branch, place, dilation) in enumerate(keys):
        block = given.get((collection, backbone, stage_name, f"block{place + 1}", module, *rest))
        for key in ((branch, place, dilation), (branch, place, None)):
            for exact_or_shared in (key, (None, *key[1:])):
                block = source_rows.get(exact_or_shared) if block is None else block
        if block is None:  # blocks of scale-permuted networks have one name in both
            block = given.get(parts)
        fits = block is not None and block.shape == bank.shape[1:]
        missing[branch, place, dilation] = not fits
        if fits:
            bank[row] = block
    return missing


def _start_as_identities(model, leaves, missing):
    """Set the last scale of every block of which nothing was filled to 0, in place.

    A random block would undo what the filled ones know, and so favour the depths that the source
    has. A block without a shortcut would pass nothing on, and a frozen scale would stay 0.
    """
    arch = model.backbone.arch

    def block(parts, key):
        # Without the dilation: where a single dilation is missing, the block is not random.
        return (*parts[1:4], *key[:2])

    used = {
        block(parts, key)
        for parts, rows in missing.items()
        for key, is_missing in rows.items()
        if not is_missing
    }
    for parts, rows in missing.items():
        path = parts[2:]
        shape = _block_shape(arch, path) if parts[1] == "backbone" else None
        if shape is None:
            continue
        is_last_scale = path[2:] == (f"bn{shape.convolutions[-1].name}", "scale")
        has_shortcut = shape.has_identity or shape.projection is not None
        if is_last_scale and has_shortcut and not model.freeze.freezes_parameter(arch, path):
            is_random = [block(parts, key) not in used for key in rows]
            np.atleast_2d(leaves[parts])[is_random] = 0


def _block_shape(arch, path):
    """Return the shape of the block that a backbone's parameter is in; None outside of blocks."""
    if bank_place(path) is not None:
        return arch.block(bank_place(path)[0], first=path[1] in ("first", "block1"))
    if arch.has_pyramid and path[1].startswith("repeat"):
        node = next(node for node in arch.nodes() if node.name == path[0])
        return node.units[int(path[1].removeprefix("repeat")) - 1]
    return None


def _unfilled(missing):
    """List the topmost names below which nothing was filled, then the partly filled banks."""
    empty, partial = {}, {}
    for parts, rows in missing.items():
        num_missing, num_rows = sum(rows.values()), len(rows)
        for depth in range(2, len(parts) + 1):
            name = parts[1:depth]
            empty[name] = empty.get(name, True) and num_missing == num_rows
        if 0 < num_missing < num_rows:
            bank = "/".join(parts[1:4])
            partial[bank] = max(partial.get(bank, (0, 0)), (num_missing, num_rows))
    names = [
        "/".join(name)
        for name, is_empty in empty.items()
        if is_empty and not empty.get(name[:-1], False)
    ]
    return names + [
        f"{bank} ({num_missing} of {num_rows} rows)"
        for bank, (num_missing, num_rows) in partial.items()
    ]
