"""Limits on the networks of a space: a space around a space."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from crnas_jax.errors import UserError
from crnas_jax.spaces.space import Code, Space

# Draws in which a code within the limits is looked for, since each may have to be measured.
_MAX_DRAWS = 300
_MAX_MUTATIONS = 20


@dataclasses.dataclass(frozen=True)
class Limit:
    """A bound on networks.

    Attributes:
      bound: largest allowed value.
      unit: unit of the value, for messages.
      measure: function from an architecture to its value.
      is_least: whether the bound is the smallest allowed value instead.
    """

    bound: float
    unit: str
    measure: Callable[[object], float]
    is_least: bool = False

    def allows(self, arch: object) -> bool:
        """Return whether an architecture is within the bound."""
        value = self.measure(arch)
        return value >= self.bound if self.is_least else value <= self.bound


def limited(space: Space, limits: list[Limit], arch_of: Callable[[Code], object]) -> Space:
    """Return the codes of a space within all limits; the space itself where there are none.

    Args:
      space: any space.
      limits: bounds on architectures; each code is measured once.
      arch_of: function from a code to its architecture.
    """
    if not limits:
        return space

    @functools.cache
    def allows(code):
        arch = arch_of(code)
        return all(limit.allows(arch) for limit in limits)

    return Constrained(space, allows, _description(limits))


def require_any(
    space: Space, limits: list[Limit], all_codes: Space, arch_of: Callable[[Code], object]
) -> None:
    """Raise UserError unless a space has a code, and name the nearest.

    Args:
      space: the codes within the limits.
      limits: bounds on architectures.
      all_codes: the space without limits.
      arch_of: function from a code to its architecture.
    """
    if next(iter(space.enumerate()), None) is not None:
        return
    nearest = []
    for limit in limits:
        value, code = min((limit.measure(arch_of(code)), code) for code in all_codes.enumerate())
        nearest.append(f"{value:,.4g} {limit.unit} {code}")
    problem = f"no {space.noun} has {_description(limits)}; the least: {', '.join(nearest)}"
    raise UserError("config", "search", problem, "relax it, or take another budget")


def _description(limits):
    return " and ".join(
        f"at {'least' if limit.is_least else 'most'} {limit.bound:g} {limit.unit}"
        for limit in limits
    )


@dataclasses.dataclass(frozen=True)
class Constrained:
    """The codes of a space that a function allows.

    Attributes:
      space: all codes.
      allows: function that tells whether a code is allowed.
      description: what the function demands, for messages.
      on_rejection: called for each code that is drawn, and not listed, but not allowed.
    """

    space: Space
    allows: Callable[[Code], bool]
    description: str
    on_rejection: Callable[[], None] = lambda: None

    @property
    def enumerable(self) -> bool:
        """Whether the space is."""
        return self.space.enumerable

    @property
    def noun(self) -> str:
        """What a code is called in messages."""
        return self.space.noun

    @property
    def num_blocks(self) -> int:
        """The space's length of a code."""
        return self.space.num_blocks

    @property
    def num_operations(self) -> int:
        """The space's number of values of an entry."""
        return self.space.num_operations

    def may_begin_with(self, partial: Code) -> bool:
        """Return whether the quickest code that begins so is allowed."""
        return self.allows(self.quickest_completion(partial))

    def quickest_completion(self, partial: Code) -> Code:
        """Return the space's quickest completion."""
        return self.space.quickest_completion(partial)

    def allows_drawn(self, code: Code) -> bool:
        """Return whether a drawn code is allowed, and tell `on_rejection` if it is not."""
        is_allowed = self.allows(code)
        if not is_allowed:
            self.on_rejection()
        return is_allowed

    def count(self) -> int:
        """Return the number of allowed codes; looks at all codes of the space."""
        return sum(1 for _ in self.enumerate())

    def enumerate(self) -> Iterator[Code]:
        """List the allowed codes, ascending."""
        return filter(self.allows, self.space.enumerate())

    def sample(self, rng: np.random.Generator) -> Code:
        """Draw one allowed code uniformly.

        Raises:
          UserError: no code was found, or none in several hundred draws from a large space.
        """
        if self.enumerable:
            codes = _all_codes(self)
            code = codes[rng.integers(len(codes))] if codes else None
        else:
            draws = (self.space.sample(rng) for _ in range(_MAX_DRAWS))
            code = next(filter(self.allows_drawn, draws), None)
        if code is None:
            problem = f"next to nothing has {self.description}"
            raise UserError("search space", "constraints", problem, "relax it")
        return code

    def mutate(self, code: Code, rng: np.random.Generator) -> Code:
        """Draw a mutation that is allowed; any code where none of the mutations is."""
        mutations = (self.space.mutate(code, rng) for _ in range(_MAX_MUTATIONS))
        allowed = next(filter(self.allows_drawn, mutations), None)
        return self.sample(rng) if allowed is None else allowed

    def cross(self, first: Code, second: Code, rng: np.random.Generator) -> Code:
        """Draw a child that is allowed; a mutation of the first parent where the child is not."""
        child = self.space.cross(first, second, rng)
        return child if self.allows_drawn(child) else self.mutate(first, rng)


@functools.lru_cache(maxsize=64)
def _all_codes(space: Constrained) -> tuple[Code, ...]:
    return tuple(space.enumerate())
