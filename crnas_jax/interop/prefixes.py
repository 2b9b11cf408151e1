"""Find one network's tensors in a state dict: wrappers put prefixes before the names.

torch.compile writes `_orig_mod.`, DataParallel `module.`, Lightning the attribute that holds the
network, and averages of weights (EMA) stand beside the weights under a prefix of their own.
"""

from collections.abc import Sequence

import numpy as np

from crnas_jax.errors import UserError

_COMPILED = "_orig_mod."
_AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel's counter
_REMEDY = "name one with --prefix"


def strip(
    state: dict[str, np.ndarray], names: Sequence[str], prefix: str | None = None
) -> tuple[dict[str, np.ndarray], str, list[str]]:
    """Return the tensors of the network without the prefix of their names.

    Args:
      state: tensors by name.
      names: names that the network has without a prefix.
      prefix: prefix of the network; None to find it.

    Returns:
      The tensors, the prefix, and the names that do not begin with it. Where no prefix fits, the
      tensors as they are, so that what is missing can be named.

    Raises:
      UserError: several networks are there and none is chosen, or `prefix` is not there.
    """
    plain = {name.replace(_COMPILED, ""): value for name, value in state.items()}
    if len(plain) != len(state):
        raise UserError("weights", _COMPILED, "a tensor comes with and without it", "remove one")
    first = names[0]
    candidates = {name.removesuffix(first) for name in plain if name.endswith(first)}
    found = every = sorted(p for p in candidates if all(p + name in plain for name in names))
    if prefix is not None:
        prefix = prefix.replace(_COMPILED, "")
        fitting = [p for p in found if p.rstrip(".") == prefix.rstrip(".")]
        if not fitting:
            problem = f"{prefix!r} is no prefix of this network; there are {found or 'none'}"
            raise UserError("weights", "--prefix", problem, "name one of them, or leave it out")
        found = fitting
    if len(found) > 1:
        problem = f"the network comes {len(found)} times, under the prefixes {found}"
        raise UserError("weights", "names", problem, _REMEDY)
    if not found:
        return plain, "", []
    (prefix,) = found
    # Without a prefix of its own, a network is what no other one's prefix stands before.
    others = tuple(p for p in every if len(p) > len(prefix))
    inside = {
        name.removeprefix(prefix): value
        for name, value in plain.items()
        if name.startswith(prefix) and not name.startswith(others) and name != _AVERAGED
    }
    return inside, prefix, sorted(plain.keys() - {prefix + name for name in inside})
