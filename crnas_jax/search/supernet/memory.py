"""How much memory a program will need, and how much there is."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from crnas_jax.runtime import team

# Share of the free memory for such work.
_SHARE = 0.4


def peak_bytes(function: Callable, *arguments) -> int:
    """Return the most bytes alive at once in a function on such arrays, without compiling it.

    All devices are counted together, arguments are not counted. Compilers fuse and reuse, so this
    is an upper estimate.
    """
    return _peak(jax.make_jaxpr(function)(*arguments).jaxpr)


def fitting(device, bytes_each: int) -> int:
    """Return how many pieces of work of `bytes_each` a device should do at once, at least one.

    Of several hosts the primary's device decides.
    """
    return team.decide(_fitting, device, bytes_each)


def _fitting(device, bytes_each):
    if device.platform == "cpu":
        return 1  # one keeps the cores busy, and its arrays are more often in the cache
    stats = device.memory_stats() or {}
    free = stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0)
    return max(int(_SHARE * free / max(bytes_each, 1)), 1)


def _peak(jaxpr):
    last_use = {
        var: index
        for index, equation in enumerate(jaxpr.eqns)
        for var in equation.invars
        if isinstance(var, Var)
    }
    last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, Var)}
    alive, peak = {}, 0
    for index, equation in enumerate(jaxpr.eqns):
        alive |= {var: _bytes(var.aval) for var in equation.outvars if var in last_use}
        inner = max((_peak(inner) for inner in _inner_jaxprs(equation)), default=0)
        if equation.primitive.name == "shard_map":  # its shapes are those on one device
            inner *= equation.params["mesh"].size
        peak = max(peak, sum(alive.values()) + inner)
        for var in equation.invars:
            if isinstance(var, Var) and last_use[var] == index:
                alive.pop(var, None)
    return peak


def _inner_jaxprs(equation):
    for value in equation.params.values():
        for entry in value if isinstance(value, tuple | list) else (value,):
            if isinstance(entry, ClosedJaxpr):
                yield entry.jaxpr
            elif isinstance(entry, Jaxpr):
                yield entry


def _bytes(aval):
    itemsize = getattr(getattr(aval, "dtype", None), "itemsize", 0)
    return math.prod(getattr(aval, "shape", ())) * itemsize
