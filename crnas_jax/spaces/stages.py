"""The two search spaces: blocks per stage, then the dilation of each block."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crnas_jax.arch.families import FAMILIES
from crnas_jax.errors import UserError

PAPER_GRIDS = (
    tuple(range(1, 11)),
    tuple(range(1, 11)),
    (2, 3, 5, 6, 9, 11, 14, 17, 20, 23),
    (2, 3, 4, 6, 7, 9, 11, 13, 15, 17),
)
_MOBILENET_GRIDS = (*[tuple(range(1, 6))] * 2, tuple(range(3, 8)), *[tuple(range(2, 7))] * 2)
# The paper's weights; they are not the ratios of the true FLOPs of a block.
_MOBILENET_COSTS = (1.5, 1.0, 1.0, 0.75, 1.25)
PAPER_DILATIONS = (1, 2, 3)
# Codes that are looked at for one within limits: a limit may have each of them measured.
_DRAWS = 300


@dataclasses.dataclass(frozen=True)
class StageSpace:
    """Candidate depths for each stage; a budget is the total cost in blocks.

    Attributes:
      grids: for each stage its candidate depths, ascending.
      block_costs: cost of one block in each stage, in blocks. In a ResNet all blocks cost the same
        FLOPs, since the resolution halves where the width doubles.
    """

    grids: tuple[tuple[int, ...], ...] = PAPER_GRIDS
    block_costs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "grids", tuple(tuple(grid) for grid in self.grids))
        for stage, grid in enumerate(self.grids):
            if not grid or min(grid) < 1 or any(a >= b for a, b in itertools.pairwise(grid)):
                raise UserError(
                    "stage space",
                    f"grids[{stage}]",
                    f"{grid}",
                    "give ascending depths of at least 1",
                )
        if len(self.block_costs) != len(self.grids):
            raise UserError(
                "stage space", "block_costs", f"{self.block_costs}", "give one for each stage"
            )

    @classmethod
    def of(cls, family: str, grids: tuple[tuple[int, ...], ...] = ()) -> "StageSpace":
        """The paper's space of a family (section 3.2), or other grids with its costs.

        Raises:
          UserError: not one grid for each searched stage.
        """
        inverted = FAMILIES[family].block == "inverted"
        grids = grids or (_MOBILENET_GRIDS if inverted else PAPER_GRIDS)
        stages = len(FAMILIES[family].searched)
        if len(grids) != stages:
            raise UserError(
                "stage space", "grids", f"there are {len(grids)}", f"give {stages} for {family}"
            )
        return cls(grids, _MOBILENET_COSTS if inverted else (1.0,) * stages)

    def cost(self, depths) -> float:
        """Cost of an allocation, in blocks."""
        return sum(cost * depth for cost, depth in zip(self.block_costs, depths, strict=True))

    def enumerate(self, budget: float | None = None) -> Iterator[tuple[int, ...]]:
        """Allocations that cost exactly `budget` (all when None), ascending."""
        for depths in itertools.product(*self.grids):
            if budget is None or self.cost(depths) == budget:
                yield depths

    def count(self, budget: float | None = None) -> int:
        """Number of allocations that cost exactly `budget` (of the whole grid when None)."""
        ways = {0.0: 1}
        for cost, grid in zip(self.block_costs, self.grids, strict=True):
            longer: dict[float, int] = {}
            for (spent, number), depth in itertools.product(ways.items(), grid):
                total = spent + cost * depth
                longer[total] = longer.get(total, 0) + number
            ways = longer
        return sum(ways.values()) if budget is None else ways.get(float(budget), 0)

    def require(self, budget: float) -> None:
        """Raises UserError with the nearest possible budgets when nothing costs `budget`."""
        if self.count(budget):
            return
        possible = sorted(
            {self.cost(depths) for depths in self.enumerate()}, key=lambda cost: abs(cost - budget)
        )
        nearest = ", ".join(f"{cost:g}" for cost in sorted(possible[:2]))
        raise UserError(
            "stage space", "budget", f"no allocation costs {budget:g} blocks", f"nearest: {nearest}"
        )

    def sample(self, rng: np.random.Generator, budget: float | None = None) -> tuple[int, ...]:
        """One allocation, uniform over those that cost `budget` (over the whole grid when None)."""
        if budget is None:
            return tuple(int(grid[rng.integers(len(grid))]) for grid in self.grids)
        self.require(budget)
        allocations = _allocations(self, budget)
        return allocations[rng.integers(len(allocations))]

    def mutate(self, depths, rng: np.random.Generator, budget: float) -> tuple[int, ...]:
        """Another allocation of the budget, uniform over those that differ in fewest stages."""
        others = [other for other in _allocations(self, budget) if other != tuple(depths)]
        changes = [sum(a != b for a, b in zip(other, depths, strict=True)) for other in others]
        fewest = min(changes, default=0)
        near = [o for o, number in zip(others, changes, strict=True) if number == fewest]
        return near[rng.integers(len(near))] if near else tuple(depths)

    def cross(self, first, second, rng: np.random.Generator, budget: float) -> tuple[int, ...]:
        """An allocation of the budget, each depth one of the parents'; where these have no child, a
        mutation of the first.
        """
        parents = tuple(first), tuple(second)
        mixed = [
            depths
            for depths in itertools.product(
                *(sorted(set(pair)) for pair in zip(*parents, strict=True))
            )
            if depths not in parents and self.cost(depths) == budget
        ]
        return sorted(mixed)[rng.integers(len(mixed))] if mixed else self.mutate(first, rng, budget)

    def branch(self, depths) -> np.ndarray:
        """Index of each depth in its grid, int32 [stages].

        Raises:
          UserError: a depth is not on the grid. `lax.switch` would clamp it in silence.
        """
        if len(depths) != len(self.grids):
            raise UserError(
                "stage space", "depths", f"{tuple(depths)}", f"give {len(self.grids)} depths"
            )
        for stage, (depth, grid) in enumerate(zip(depths, self.grids, strict=True)):
            if depth not in grid:
                raise UserError(
                    "stage space",
                    f"depths[{stage}]",
                    f"{depth} is not on the grid",
                    f"use one of {grid}",
                )
        return np.array(
            [grid.index(d) for d, grid in zip(depths, self.grids, strict=True)], np.int32
        )


@dataclasses.dataclass(frozen=True)
class OperationSpace:
    """Candidate dilations for each block of a network with fixed depths.

    Attributes:
      depths: blocks per stage, those of fixed depth included (`Arch.stage_depths`).
      dilations: the candidates, the same for every block. A code holds indices into them.
    """

    depths: tuple[int, ...]
    dilations: tuple[int, ...] = PAPER_DILATIONS

    def __post_init__(self):
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
    def blocks(self) -> int:
        """Number of searched blocks."""
        return sum(self.depths)

    @property
    def operations(self) -> int:
        """Number of candidates of a block."""
        return len(self.dilations)

    def count(self, budget: float | None = None) -> int:
        """Number of codes; dilation costs nothing, so every code fits the budget of `depths`."""
        del budget
        return len(self.dilations) ** self.blocks

    def enumerate(self, budget: float | None = None) -> Iterator[tuple[int, ...]]:
        """All codes, lexicographically ascending."""
        del budget
        return itertools.product(range(len(self.dilations)), repeat=self.blocks)

    def sample(self, rng: np.random.Generator, budget: float | None = None) -> tuple[int, ...]:
        """One code, each block's operation uniform and independent."""
        del budget
        return tuple(int(i) for i in rng.integers(len(self.dilations), size=self.blocks))

    def mutate(
        self, code, rng: np.random.Generator, budget: float | None = None
    ) -> tuple[int, ...]:
        """The code with each block's operation drawn anew with a chance of 0.1, one at least."""
        del budget
        anew = rng.random(self.blocks) < 0.1
        anew[rng.integers(self.blocks)] = True
        step = rng.integers(1, max(self.operations, 2), size=self.blocks)
        pairs = zip(code, anew, step, strict=True)
        return tuple(int((c + s) % self.operations if a else c) for c, a, s in pairs)

    def cross(
        self, first, second, rng: np.random.Generator, budget: float | None = None
    ) -> tuple[int, ...]:
        """Each block's operation one of the parents'."""
        del budget
        pairs = zip(first, second, strict=True)
        sides = rng.integers(2, size=self.blocks)
        return tuple(int(pair[side]) for pair, side in zip(pairs, sides, strict=True))

    def begins(self, partial) -> bool:
        """Whether a code of the space may begin so."""
        del partial
        return True

    def evaluations(self, keep: int = 3) -> int:
        """Partial codes the greedy search scores (algorithm 1): 3 + 9 (B - 1) for K = 3."""
        total, kept = 0, 1
        for _ in range(self.blocks):
            total += kept * len(self.dilations)
            kept = min(keep, kept * len(self.dilations))
        return total

    def validate(self, code) -> np.ndarray:
        """The code as int32 [blocks].

        Raises:
          UserError: an entry is no index into `dilations`, or there is not one for each block.
        """
        if len(code) != self.blocks or any(not 0 <= entry < len(self.dilations) for entry in code):
            raise UserError(
                "operation space",
                "code",
                f"{tuple(code)}",
                f"give {self.blocks} entries of 0..{len(self.dilations) - 1}",
            )
        return np.array(code, np.int32)


@functools.lru_cache(maxsize=64)
def _allocations(space, budget):
    return tuple(space.enumerate(budget))


def limited(space, limits: Sequence[tuple[float, str, Callable]], arch_of: Callable):
    """The codes of a space within all limits; the space itself where there are none.

    Args:
      space: a `StageSpace` or an `OperationSpace`.
      limits: the most, its unit, and what measures an `Arch`.
      arch_of: from a code to its `Arch`.
    """

    @functools.cache
    def allows(code):
        arch = arch_of(code)
        return all(measure(arch) <= most for most, _, measure in limits)

    what = " and ".join(f"at most {most:g} {unit}" for most, unit, _ in limits)
    return Constrained(space, allows, what) if limits else space


@dataclasses.dataclass(frozen=True)
class Constrained:
    """The codes of a space that a function allows.

    Attributes:
      space: a `StageSpace` or an `OperationSpace`.
      allows: of a code.
      what: is demanded, for people.
    """

    space: StageSpace | OperationSpace
    allows: Callable[[tuple[int, ...]], bool]
    what: str

    @property
    def blocks(self) -> int:
        """As the operation space's, and so `operations`."""
        return self.space.blocks

    @property
    def operations(self) -> int:
        """Candidates of a block."""
        return self.space.operations

    def begins(self, partial) -> bool:
        """Whether a partial operation code is allowed with the least dilation, the quickest, in the
        other blocks.
        """
        dilations = self.space.dilations
        rest = [dilations.index(min(dilations))] * (self.blocks - len(partial))
        return self.allows((*partial, *rest))

    def require(self, budget: float | None = None) -> None:
        """Raises UserError unless a code of the budget is allowed."""
        if next(iter(self.enumerate(budget)), None) is None:
            problem = f"no allocation of {budget:g} blocks has {self.what}"
            raise UserError("config", "search", problem, "relax it, or take another budget")

    def enumerate(self, budget: float | None = None) -> Iterator[tuple[int, ...]]:
        """The allowed codes, ascending."""
        return filter(self.allows, self.space.enumerate(budget))

    def sample(self, rng: np.random.Generator, budget: float | None = None) -> tuple[int, ...]:
        """One allowed code, uniform.

        Raises:
          UserError: next to none is.
        """
        # Allocations can all be looked at; operation codes are too many.
        if isinstance(self.space, StageSpace):
            codes = _allocations(self, budget)
            found = codes[rng.integers(len(codes))] if codes else None
        else:
            draws = (self.space.sample(rng, budget) for _ in range(_DRAWS))
            found = next(filter(self.allows, draws), None)
        if found is None:
            problem = f"next to nothing has {self.what}"
            raise UserError("search space", "constraints", problem, "relax it")
        return found

    def mutate(self, code, rng: np.random.Generator, budget: float | None = None):
        """As the space's; any code of the budget where none of its mutations is allowed."""
        children = (self.space.mutate(code, rng, budget) for _ in range(20))
        allowed = next(filter(self.allows, children), None)
        return self.sample(rng, budget) if allowed is None else allowed

    def cross(self, first, second, rng: np.random.Generator, budget: float | None = None):
        """As the space's; a mutation of the first where no child is allowed."""
        child = self.space.cross(first, second, rng, budget)
        return child if self.allows(child) else self.mutate(first, rng, budget)
