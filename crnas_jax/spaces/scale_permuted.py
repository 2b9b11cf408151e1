"""The space of scale-permuted networks (SpineNet, arXiv 1912.05027, section 3).

Three parts: the order of the blocks, the two parents of each, and adjustments of level and kind. A
code is the sequence of their decisions, so that a controller draws it one by one.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from crnas_jax.arch import connections, graphs
from crnas_jax.arch.scale_permuted import PermutedBlock, ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.options import check_choice, check_counts
from crnas_jax.spaces.space import Code

PARTS = ("permutations", "connections", "adjustments")
# Parents where they are not searched but the order is: the two nearest allowed blocks, or two that
# are drawn once for each order.
FIXED_PARENTS = ("nearest", "drawn")
# The space is listed as a whole up to this many codes.
_FEW = 4096


@dataclasses.dataclass(frozen=True)
class Decision:
    """One entry of a code.

    Attributes:
      kind: what is decided: decisions of one kind have the same meaning at every place.
      num_options: number of values that it may have, before masks.
    """

    kind: str
    num_options: int


@dataclasses.dataclass(frozen=True)
class ScalePermutedSpace:
    """Orders, connections and adjustments of the blocks of a network.

    Intermediate blocks are ordered among themselves, and so are the outputs, which come last. An
    intermediate block reads two of the last `window` blocks, an output any two before it. What is
    not searched is as in `base`; parents in another order than its own follow `fixed_parents`.

    A code has, where they are searched: the block of `base` at each place, intermediate blocks
    first; two ascending parents for each place, indices into stem and permuted blocks; for each
    intermediate block of `base` an index into `offsets`, and for each of its blocks the index of a
    kind of its family.

    Attributes:
      base: the network whose blocks are permuted, such as the seed; outputs last.
      parts: what is searched, some of `PARTS`.
      window: number of blocks that an intermediate block may read.
      offsets: what may be added to the level of an intermediate block.
      levels: lowest and highest level that an offset may lead to.
      fixed_parents: one of `FIXED_PARENTS`.

    Raises:
      UserError: a field is out of bounds, or outputs of the base are not last.
    """

    base: ScalePermuted
    parts: tuple[str, ...] = PARTS
    window: int = 5
    offsets: tuple[int, ...] = (-1, 0, 1, 2)
    levels: tuple[int, int] = (2, 7)
    fixed_parents: str = "nearest"

    noun = "scale-permuted network"

    def __post_init__(self):
        check_choice(self, "parts", PARTS)
        check_choice(self, "fixed_parents", FIXED_PARENTS)
        check_counts(self, "window", "levels", least=2)
        if not self.parts:
            raise self._fault("parts", "empty", f"name some of {PARTS}")
        if len(self.levels) != 2 or not 2 <= self.levels[0] <= self.levels[1] <= 7:
            raise self._fault("levels", f"{self.levels}", "give the lowest and highest, 2 to 7")
        offsets = self.offsets
        is_whole = all(isinstance(offset, int) for offset in offsets)
        if 0 not in offsets or len(set(offsets)) < len(offsets) or not is_whole:
            raise self._fault("offsets", f"{offsets}", "give different whole numbers, 0 too")
        graphs.require_outputs_last(self.base)
        for block in self.base.blocks:
            if not block.is_output and not self.levels[0] <= block.level <= self.levels[1]:
                problem = f"{self.levels}, and the base has a block of level {block.level}"
                raise self._fault("levels", problem, "widen them")
        if len(self.readable[0]) < 2:
            raise self._fault("base", "one stem block that may be read", "give two")

    @staticmethod
    def _fault(field, problem, remedy):
        return UserError("ScalePermutedSpace", field, problem, remedy)

    @functools.cached_property
    def num_inner(self) -> int:
        """Number of intermediate blocks."""
        return graphs.require_outputs_last(self.base)

    @property
    def num_blocks(self) -> int:
        """Number of permuted blocks."""
        return len(self.base.blocks)

    @property
    def enumerable(self) -> bool:
        """Whether there are few enough codes to look at all of them."""
        return self.count() <= _FEW

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that a block may have."""
        return tuple(dict(self.base.traits.kinds))

    @functools.cached_property
    def readable(self) -> list[list[int]]:
        """The blocks that the block at each place may read, ascending."""
        return [list(read) for read in connections.candidates(self.base, self.window)]

    @functools.cached_property
    def allowed_offsets(self) -> list[list[int]]:
        """The indices of the offsets that each intermediate block of the base may have."""
        low, high = self.levels
        return [
            [i for i, offset in enumerate(self.offsets) if low <= block.level + offset <= high]
            for block in self.base.blocks[: self.num_inner]
        ]

    @functools.cached_property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions of a code, in order."""
        inner, num_blocks = self.num_inner, self.num_blocks
        decisions = []
        if "permutations" in self.parts:
            decisions += [Decision("intermediate order", inner)] * inner
            decisions += [Decision("output order", num_blocks - inner)] * (num_blocks - inner)
        if "connections" in self.parts:
            num_indices = len(self.base.stem) + num_blocks - 1
            decisions += [Decision("parent", num_indices)] * 2 * num_blocks
        if "adjustments" in self.parts:
            decisions += [Decision("offset", len(self.offsets))] * inner
            decisions += [Decision("kind", len(self.kinds))] * num_blocks
        return tuple(decisions)

    @functools.cached_property
    def _slices(self):
        """Where each group of decisions stands in a code."""
        inner, num_blocks = self.num_inner, self.num_blocks
        lengths = {"inner": inner, "outputs": num_blocks - inner, "parents": 2 * num_blocks}
        lengths |= {"offsets": inner, "kinds": num_blocks}
        part_of = {"inner": PARTS[0], "outputs": PARTS[0], "parents": PARTS[1]}
        slices, start = {}, 0
        for name, length in lengths.items():
            length = length if part_of.get(name, PARTS[2]) in self.parts else 0
            slices[name] = slice(start, start + length)
            start += length
        return slices

    def split(self, code: Code) -> dict[str, tuple[int, ...]]:
        """Return the groups of a code by name; those that are not searched are empty."""
        return {name: tuple(code[where]) for name, where in self._slices.items()}

    def mask(self, partial: Code) -> np.ndarray:
        """Return which values the next decision may have, bool [options].

        Args:
          partial: first entries of a code.
        """
        position = len(partial)
        allowed = np.zeros(self.decisions[position].num_options, bool)
        for name, where in self._slices.items():
            if where.start <= position < where.stop:
                allowed[self._options(name, position - where.start, partial[where.start :])] = True
        return allowed

    def _options(self, name, place, group):
        """List the values of an entry of a group, given the group's earlier entries."""
        if name in ("inner", "outputs"):
            size = self.num_inner if name == "inner" else self.num_blocks - self.num_inner
            return [label for label in range(size) if label not in group]
        if name == "parents":
            readable = self.readable[place // 2]
            # Parents ascend: a pair has one form, and the first leaves one for the second.
            return [p for p in readable if p > group[-1]] if place % 2 else readable[:-1]
        return self.allowed_offsets[place] if name == "offsets" else range(len(self.kinds))

    def count(self) -> int:
        """Return the number of codes."""
        inner, outputs = self.num_inner, self.num_blocks - self.num_inner
        total = 1
        if "permutations" in self.parts:
            total *= math.factorial(inner) * math.factorial(outputs)
        if "connections" in self.parts:
            total *= math.prod(math.comb(len(readable), 2) for readable in self.readable)
        if "adjustments" in self.parts:
            total *= math.prod(map(len, self.allowed_offsets))
            total *= len(self.kinds) ** self.num_blocks
        return total

    def enumerate(self) -> Iterator[Code]:
        """List all codes, ascending."""
        groups = []
        if "permutations" in self.parts:
            for size in (self.num_inner, self.num_blocks - self.num_inner):
                groups.append(itertools.permutations(range(size)))
        if "connections" in self.parts:
            groups += [itertools.combinations(readable, 2) for readable in self.readable]
        if "adjustments" in self.parts:
            groups += [[(option,) for option in options] for options in self.allowed_offsets]
            groups += [[(kind,) for kind in range(len(self.kinds))]] * self.num_blocks
        return (tuple(itertools.chain(*code)) for code in itertools.product(*groups))

    def sample(self, rng: np.random.Generator) -> Code:
        """Draw one code uniformly."""
        code = []
        if "permutations" in self.parts:
            code += [*rng.permutation(self.num_inner)]
            code += [*rng.permutation(self.num_blocks - self.num_inner)]
        if "connections" in self.parts:
            for readable in self.readable:
                code += sorted(rng.choice(readable, 2, replace=False))
        if "adjustments" in self.parts:
            code += [options[rng.integers(len(options))] for options in self.allowed_offsets]
            code += [*rng.integers(len(self.kinds), size=self.num_blocks)]
        return tuple(map(int, code))

    def mutate(self, code: Code, rng: np.random.Generator) -> Code:
        """Change one thing: swap two blocks, or draw one parent, offset or kind anew.

        Which of them is drawn uniformly from those that have an alternative.
        """
        changes = [name for name in self._slices if self._places(name)]
        if not changes:
            return tuple(code)
        name = changes[rng.integers(len(changes))]
        places = self._places(name)
        group, start = list(self.split(code)[name]), self._slices[name].start
        place = places[rng.integers(len(places))]
        if name in ("inner", "outputs"):
            other = places[rng.integers(len(places) - 1)]
            other = places[-1] if other == place else other
            group[place], group[other] = group[other], group[place]
        elif name == "parents":
            first = place - place % 2
            pair = group[first : first + 2]
            others = [p for p in self.readable[place // 2] if p not in pair]
            pair[place % 2] = others[rng.integers(len(others))]
            group[first : first + 2] = sorted(pair)
        else:
            others = [o for o in self._options(name, place, ()) if o != group[place]]
            group[place] = others[rng.integers(len(others))]
        return (*code[:start], *group, *code[start + len(group) :])

    def _places(self, name):
        """List the entries of a group that have an alternative."""
        where = self._slices[name]
        places = range(where.stop - where.start)
        if name in ("inner", "outputs"):
            return places if len(places) > 1 else ()
        if name == "parents":
            return [place for place in places if len(self.readable[place // 2]) > 2]
        return [place for place in places if len(self._options(name, place, ())) > 1]

    def cross(self, first: Code, second: Code, rng: np.random.Generator) -> Code:
        """Draw each order, each pair of parents, each offset and each kind from one parent."""
        child = []
        pairs = zip(self.split(first).items(), self.split(second).values(), strict=True)
        for (name, one), other in pairs:
            size = {"inner": len(one), "outputs": len(one), "parents": 2}.get(name, 1)
            for start in range(0, len(one), max(size, 1)):
                chosen = (one, other)[rng.integers(2)]
                child += chosen[start : start + size]
        return tuple(child)

    def validate(self, code: Code) -> None:
        """Raise UserError unless a code is in the space."""
        if len(code) == len(self.decisions):
            for position, value in enumerate(code):
                mask = self.mask(tuple(code[:position]))
                if not 0 <= value < len(mask) or not mask[value]:
                    problem = f"entry {position} is {value}"
                    raise UserError("search space", "code", problem, "give a code of the space")
            return
        problem = f"{len(code)} entries, not {len(self.decisions)}"
        raise UserError("search space", "code", problem, "give a code of the space")

    def fixed_pairs(self, shapes: tuple[tuple[int, str], ...]) -> list[tuple[int, int]]:
        """Return the parents of an order whose connections are not searched.

        Args:
          shapes: level and kind at each place.
        """
        if self.fixed_parents == "nearest":
            return [(readable[-2], readable[-1]) for readable in self.readable]
        rng = np.random.default_rng(int(digest(repr(shapes)), 16))
        while True:  # until all blocks reach an output: a code of this part leaves none out
            drawn = [rng.choice(readable, 2, replace=False) for readable in self.readable]
            pairs = [tuple(map(int, sorted(pair))) for pair in drawn]
            blocks = [
                PermutedBlock(level, kind, pair, place >= self.num_inner)
                for place, ((level, kind), pair) in enumerate(zip(shapes, pairs, strict=True))
            ]
            if len(graphs.prune(len(self.base.stem), blocks)) == len(blocks):
                return pairs

    def decode(self, code: Code) -> ScalePermuted:
        """Return the network of a code, without the blocks that reach no output."""
        groups, base = self.split(code), self.base.blocks
        labels = list(range(self.num_blocks))
        if groups["inner"]:
            labels = [*groups["inner"], *(self.num_inner + label for label in groups["outputs"])]
        shapes = []
        for label in labels:
            level, kind = base[label].level, base[label].kind
            if groups["kinds"]:
                kind = self.kinds[groups["kinds"][label]]
                if label < self.num_inner:
                    level += self.offsets[groups["offsets"][label]]
            shapes.append((level, kind))
        parents = groups["parents"]
        if parents:
            pairs = list(zip(parents[::2], parents[1::2], strict=True))
        elif "permutations" in self.parts:
            pairs = self.fixed_pairs(tuple(shapes))
        else:
            pairs = [block.parents for block in base]
        blocks = [
            PermutedBlock(level, kind, pair, base[label].is_output)
            for (level, kind), pair, label in zip(shapes, pairs, labels, strict=True)
        ]
        return dataclasses.replace(self.base, blocks=graphs.prune(len(self.base.stem), blocks))
