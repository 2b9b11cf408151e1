"""The processes that carry out one command together: all do the same, and one of them writes.

What runs on the devices is theirs together, so every process has to run the same Python code with
the same values. Whatever may differ between them (files, clocks, signals, free memory) the primary
looks at, and tells the others with `decide`. No JAX here: `parallel.hosts` brings the processes of
several hosts together; without it a process is alone, and `decide` only calls the function.
"""

import base64
import json
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from crnas_jax.errors import UserError

_Result = TypeVar("_Result")


class Team(Protocol):
    """The processes of a command.

    Attributes:
      index: number of this process; the primary is 0.
      count: number of processes.
    """

    index: int
    count: int

    def broadcast(self, text: str | None) -> str:
        """Return the primary's text; every process calls it, the others with None."""

    def gather(self, text: str) -> list[str]:
        """Return the texts of all processes by index; every process calls it."""

    def stop_requested(self) -> bool:
        """Return whether any process was asked to stop; the same for all that ask equally often."""


class _Alone:
    index, count = 0, 1

    def broadcast(self, text):
        return text

    def gather(self, text):
        return [text]

    def stop_requested(self):
        return False


_team: Team = _Alone()
# Whether this process, the primary, does something that the others do not: see `decide`.
_deciding = False


def join(team: Team) -> None:
    """Make this process one of a team, before any other function here is called."""
    global _team
    _team = team


def current() -> Team:
    """Return the team of this process."""
    return _team


def is_primary() -> bool:
    """Return whether this process is the one that writes."""
    return _team.index == 0


def is_joint() -> bool:
    """Return whether several processes do the same now: not where one of them decides."""
    return _team.count > 1 and not _deciding


def decide(function: Callable[..., _Result], *arguments) -> _Result:
    """Call a function on the primary alone; return its result on every process.

    Every process must get here. The function must not run anything on devices that belong to
    several processes; it may call `decide` again.

    Args:
      function: what to call; its result consists of None, bools, numbers, strings, tuples, lists,
        dicts and NumPy arrays; NumPy's numbers become Python's.
      *arguments: its arguments.

    Raises:
      UserError: the function raised it; so do all processes.
      RuntimeError: the primary is at another place of the code.
    """
    global _deciding
    if not is_joint():
        return function(*arguments)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if not is_primary():
        return _open(_team.broadcast(None), name)
    _deciding = True
    try:
        answer = {"value": function(*arguments)}
    except UserError as error:
        answer = {"error": (error.where, error.field, error.problem, error.remedy)}
    finally:
        _deciding = False
    return _open(_team.broadcast(encode({**answer, "function": name})), name)


def _open(text, function):
    answer = decode(text)
    if answer["function"] != function:
        raise RuntimeError(f"host 0 decided {answer['function']}, not {function}")
    if "error" in answer:
        raise shared_error(*answer["error"])
    return answer["value"]


def shared_error(where, field: str, problem: str, remedy: str) -> UserError:
    """Make an error that all processes raise alike, so that none of them is named for it."""
    error = UserError(where, field, problem, remedy)
    error.is_shared = True
    return error


def require_alike(values: dict[str, str]) -> None:
    """Raise UserError, on all processes, unless they have the same values by name."""
    if not is_joint():
        return
    first, *others = gather(values)
    for host, own in enumerate(others, 1):
        for name in sorted(first.keys() | own.keys()):
            if own.get(name) != first.get(name):
                problem = f"{own.get(name)}, on host 0 {first.get(name)}"
                remedy = "give all hosts the same command, config, data and packages"
                raise shared_error(f"host {host}", name, problem, remedy)


def gather(value) -> list:
    """Return the values of all processes by index; types as in `decide`."""
    if not is_joint():
        return [value]
    return [decode(text) for text in _team.gather(encode(value))]


def encode(value) -> str:
    """Return a value as text, from which nothing is executed when it is read."""
    return json.dumps(_pack(value))


def decode(text: str):
    """Return what `encode` was given, with the same types."""
    return _unpack(json.loads(text))


def _pack(value):
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, int | float):
        return value
    if isinstance(value, list):
        return [_pack(entry) for entry in value]
    if isinstance(value, tuple):
        return {"tuple": [_pack(entry) for entry in value]}
    if isinstance(value, dict):
        return {"dict": [[_pack(key), _pack(entry)] for key, entry in value.items()]}
    if isinstance(value, np.ndarray):
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [value.dtype.str, list(np.shape(value)), content]}
    raise TypeError(f"{type(value).__name__} cannot be told to other processes")


def _unpack(value):
    if isinstance(value, list):
        return [_unpack(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tuple":
        return tuple(_unpack(entry) for entry in content)
    if kind == "dict":
        return {_unpack(key): _unpack(entry) for key, entry in content}
    dtype, shape, data = content
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape).copy()
