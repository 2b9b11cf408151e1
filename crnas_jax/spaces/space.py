"""What a search space is: the protocols that strategies rely on, and codes as values.

A code is a tuple of integers. A budget is a space (`StageSpace.within`), limits are a space around
a space (`constrained.limited`), so that a strategy needs to know of neither.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np

Code = tuple[int, ...]


@runtime_checkable
class Space(Protocol):
    """A set of codes.

    Attributes:
      enumerable: whether there are few enough codes to look at all of them.
      noun: what a code is called in messages, such as "allocation of 16 blocks".
    """

    enumerable: bool
    noun: str

    def count(self) -> int:
        """Return the number of codes."""

    def enumerate(self) -> Iterable[Code]:
        """List all codes in ascending order."""

    def sample(self, rng: np.random.Generator) -> Code:
        """Draw one code uniformly."""


@runtime_checkable
class BreedingSpace(Space, Protocol):
    """A space with codes that evolution can breed."""

    def mutate(self, code: Code, rng: np.random.Generator) -> Code:
        """Draw a code near another one."""

    def cross(self, first: Code, second: Code, rng: np.random.Generator) -> Code:
        """Draw a code that mixes two."""


@runtime_checkable
class BlockSpace(Space, Protocol):
    """A space with one entry for each block, which the greedy search walks block by block.

    Attributes:
      num_blocks: length of a code.
      num_operations: number of values that an entry can have.
    """

    num_blocks: int
    num_operations: int

    def may_begin_with(self, partial: Code) -> bool:
        """Return whether a code of the space may begin with these entries."""

    def quickest_completion(self, partial: Code) -> Code:
        """Return the code with these first entries that runs fastest."""
