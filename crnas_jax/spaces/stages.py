"""The space of stage reallocation: how many blocks each stage has (paper, section 3.2)."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from crnas_jax.arch.families import FAMILIES
from crnas_jax.errors import UserError

PAPER_GRIDS = FAMILIES["resnet_bottleneck"].depth_grids


@dataclasses.dataclass(frozen=True)
class StageSpace:
    """All combinations of candidate depths, whatever they cost.

    Attributes:
      grids: candidate depths of each searched stage, ascending.
      block_costs: cost of one block in each stage, in blocks.

    Raises:
      UserError: a grid is not ascending, or there is not one cost for each stage.
    """

    grids: tuple[tuple[int, ...], ...] = PAPER_GRIDS
    block_costs: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    enumerable = True
    noun = "allocation"

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
    def for_family(cls, family: str, grids: tuple[tuple[int, ...], ...] = ()) -> "StageSpace":
        """Return the paper's space of a family (section 3.2), or other grids with its costs.

        Raises:
          UserError: there is not one grid for each searched stage.
        """
        traits = FAMILIES[family]
        grids = grids or traits.depth_grids
        num_stages = len(traits.searched_stages)
        if len(grids) != num_stages:
            raise UserError(
                "stage space", "grids", f"there are {len(grids)}", f"give {num_stages} for {family}"
            )
        return cls(grids, traits.block_costs)

    def cost(self, depths) -> float:
        """Return the cost of an allocation, in blocks."""
        return sum(cost * depth for cost, depth in zip(self.block_costs, depths, strict=True))

    def count(self) -> int:
        """Return the number of allocations."""
        return sum(self._count_by_cost.values())

    def enumerate(self) -> Iterator[tuple[int, ...]]:
        """List all allocations, ascending."""
        return itertools.product(*self.grids)

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw each stage's depth uniformly from its grid."""
        return tuple(int(grid[rng.integers(len(grid))]) for grid in self.grids)

    def within(self, budget: float) -> "BudgetSpace":
        """Return the space of the allocations that cost exactly `budget` blocks.

        Raises:
          UserError: nothing costs that; the message names the nearest possible budgets.
        """
        if not self._count_by_cost.get(float(budget)):
            by_distance = sorted(self._count_by_cost, key=lambda cost: abs(cost - budget))
            nearest = ", ".join(f"{cost:g}" for cost in sorted(by_distance[:2]))
            raise UserError(
                "stage space",
                "budget",
                f"no allocation costs {budget:g} blocks",
                f"nearest: {nearest}",
            )
        return BudgetSpace(self, budget)

    @functools.cached_property
    def _count_by_cost(self):
        """The number of allocations by their cost, without listing them."""
        counts = {0.0: 1}
        for cost, grid in zip(self.block_costs, self.grids, strict=True):
            longer: dict[float, int] = {}
            for (spent, count), depth in itertools.product(counts.items(), grid):
                total = spent + cost * depth
                longer[total] = longer.get(total, 0) + count
            counts = longer
        return counts

    def branch(self, depths) -> np.ndarray:
        """Return the index of each depth in its grid, int32 [stages].

        Raises:
          UserError: a depth is not on the grid. `lax.switch` would clamp its index silently.
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
class BudgetSpace:
    """The allocations that cost exactly a budget.

    Attributes:
      stages: all allocations.
      budget: total cost in blocks.
    """

    stages: StageSpace
    budget: float

    enumerable = True

    @property
    def noun(self) -> str:
        """What a code is called in messages."""
        return f"allocation of {self.budget:g} blocks"

    def count(self) -> int:
        """Return the number of allocations."""
        return len(_allocations(self))

    def enumerate(self) -> Iterator[tuple[int, ...]]:
        """List the allocations, ascending."""
        return iter(_allocations(self))

    def sample(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw one allocation uniformly."""
        allocations = _allocations(self)
        return allocations[rng.integers(len(allocations))]

    def mutate(self, code, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw another allocation uniformly from those that differ in the fewest stages."""
        others = [other for other in _allocations(self) if other != tuple(code)]
        changes = [sum(a != b for a, b in zip(other, code, strict=True)) for other in others]
        fewest = min(changes, default=0)
        near = [other for other, count in zip(others, changes, strict=True) if count == fewest]
        return near[rng.integers(len(near))] if near else tuple(code)

    def cross(self, first, second, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw an allocation that has each depth from one of two parents.

        Where the parents have no such child, a mutation of the first is drawn.
        """
        parents = tuple(first), tuple(second)
        depths = (sorted(set(pair)) for pair in zip(*parents, strict=True))
        children = [
            child
            for child in itertools.product(*depths)
            if child not in parents and self.stages.cost(child) == self.budget
        ]
        if not children:
            return self.mutate(first, rng)
        return sorted(children)[rng.integers(len(children))]


@functools.lru_cache(maxsize=64)
def _allocations(space: BudgetSpace) -> tuple[tuple[int, ...], ...]:
    cost = space.stages.cost
    return tuple(depths for depths in space.stages.enumerate() if cost(depths) == space.budget)
