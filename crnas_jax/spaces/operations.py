"""The space of operation reallocation: the dilation of each block (paper, section 3.3)."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_choice

# What has one entry of a code: each block (the paper's), or all blocks of a stage together.
TIES = ("block", "stage")
PAPER_DILATIONS = (1, 2, 3)
# The same of a scale-permuted network: each permuted block, or all of a level together.
PERMUTED_TIES = ("block", "level")
# Chance that a mutation draws a block's operation anew.
_MUTATION_RATE = 0.1


@dataclasses.dataclass(frozen=True)
class OperationSpace:
    """Candidate dilations for each block of a network with fixed depths.

    Dilation costs nothing, so every code has the FLOPs of the network.

    Attributes:
      depths: number of blocks in each stage, stages of fixed depth included
        (`Arch.stage_depths`).
      dilations: candidates, the same for every block. A code holds indices into them.
      tie: one of `TIES`. With "stage" the blocks of a stage share their dilation: few images cannot
        tell the 3^8 codes of eight blocks apart, but 3^4.

    Raises:
      UserError: the dilations are not different whole numbers of at least 1.
    """

    depths: tuple[int, ...]
    dilations: tuple[int, ...] = PAPER_DILATIONS
    tie: str = "block"

    enumerable = False
    noun = "operation code"
    ties: ClassVar[tuple[str, ...]] = TIES

    def __post_init__(self):
        check_choice(self, "tie", self.ties)
        if (
            not self.dilations
            or min(self.dilations) < 1
            or len(set(self.dilations)) != len(self.dilations)
        ):
            raise UserError(
                "operation space",
                "dilations",
                f"{self.dilations}",
                "give different ones of at least 1",
            )

    @property
    def num_blocks(self) -> int:
        """Length of a code: number of searched blocks, or of stages where their blocks are tied."""
        return sum(self.depths) if self.tie == "block" else len(self.depths)

    @property
    def entries(self) -> tuple[str, ...]:
        """What each entry of a code gives a dilation to, for people."""
        return tuple(f"{self.tie} {number}" for number in range(1, self.num_blocks + 1))

    @property
    def num_operations(self) -> int:
        """Number of candidates for a block."""
        return len(self.dilations)

    def count(self) -> int:
        """Return the number of codes."""
        return self.num_operations**self.num_blocks

    def enumerate(self) -> Iterator[tuple[int, ...]]:
        """List all codes, ascending."""
        return itertools.product(range(self.num_operations), repeat=self.num_blocks)

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw one code, each block's operation uniform and independent."""
        return tuple(int(i) for i in rng.integers(self.num_operations, size=self.num_blocks))

    def mutate(self, code, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw each block's operation anew with a chance of 0.1, and at least one block's."""
        anew = rng.random(self.num_blocks) < _MUTATION_RATE
        anew[rng.integers(self.num_blocks)] = True
        step = rng.integers(1, max(self.num_operations, 2), size=self.num_blocks)
        entries = zip(code, anew, step, strict=True)
        return tuple(int((c + s) % self.num_operations if a else c) for c, a, s in entries)

    def cross(self, first, second, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw each block's operation from one of two parents."""
        pairs = zip(first, second, strict=True)
        sides = rng.integers(2, size=self.num_blocks)
        return tuple(int(pair[side]) for pair, side in zip(pairs, sides, strict=True))

    def may_begin_with(self, partial) -> bool:
        """Return True: any partial code has a completion in the space."""
        return len(partial) <= self.num_blocks

    def quickest_completion(self, partial) -> tuple[int, ...]:
        """Complete a partial code with the smallest dilation, which runs fastest."""
        quickest = self.dilations.index(min(self.dilations))
        return (*partial, *[quickest] * (self.num_blocks - len(partial)))

    @property
    def ones(self) -> tuple[int, ...] | None:
        """The code of the network without dilation; None where 1 is no candidate."""
        if 1 not in self.dilations:
            return None
        return (self.dilations.index(1),) * self.num_blocks

    def operations_of(self, code) -> tuple[int, ...]:
        """Return the index into `dilations` of every block for a code."""
        if self.tie == "block":
            return tuple(code)
        entries = zip(code, self.depths, strict=True)
        return tuple(operation for operation, depth in entries for _ in range(depth))

    def dilations_of(self, code) -> tuple[int, ...]:
        """Return the dilation of every block for a code."""
        return tuple(self.dilations[operation] for operation in self.operations_of(code))

    def validate(self, code) -> np.ndarray:
        """Return the code as int32 [blocks].

        Raises:
          UserError: an entry is no index into `dilations`, or there is not one for each block.
        """
        if len(code) != self.num_blocks or any(not 0 <= e < self.num_operations for e in code):
            raise UserError(
                "operation space",
                "code",
                f"{tuple(code)}",
                f"give {self.num_blocks} entries of 0..{self.num_operations - 1}",
            )
        return np.array(code, np.int32)


@dataclasses.dataclass(frozen=True)
class PermutedOperationSpace(OperationSpace):
    """Candidate dilations for each permuted block of a scale-permuted network.

    Attributes:
      depths: number of permuted blocks at each level that has some, finest first.
      tie: one of `PERMUTED_TIES`.
      levels: level of each permuted block, in network order.
    """

    levels: tuple[int, ...] = ()

    ties = PERMUTED_TIES

    @classmethod
    def of_levels(
        cls, levels: tuple[int, ...], dilations: tuple[int, ...], tie: str
    ) -> "PermutedOperationSpace":
        """Return the space of permuted blocks with these levels."""
        depths = tuple(levels.count(level) for level in sorted(set(levels)))
        return cls(depths, tuple(dilations), tie, tuple(levels))

    @property
    def entries(self) -> tuple[str, ...]:
        """What each entry of a code gives a dilation to, for people: levels by their number."""
        if self.tie == "block":
            return super().entries
        return tuple(f"level {level}" for level in sorted(set(self.levels)))

    def operations_of(self, code) -> tuple[int, ...]:
        """Return the index into `dilations` of every permuted block for a code."""
        if self.tie == "block":
            return tuple(code)
        by_level = dict(zip(sorted(set(self.levels)), code, strict=True))
        return tuple(by_level[level] for level in self.levels)
