"""Where candidates are trained: the protocol, and this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


@runtime_checkable
class Executor(Protocol):
    """Runs one piece of work for each item, such as the training of a candidate."""

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[_Result]:
        """Yield the function's result for every item, in order, each as soon as it is there."""


class InProcess:
    """Runs one item after another in this process, each on all devices."""

    def map(
        self, function: Callable[[_Item], _Result], items: Iterable[_Item]
    ) -> Iterator[_Result]:
        """Yield the results; see `Executor`."""
        return map(function, items)
