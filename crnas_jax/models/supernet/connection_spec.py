"""What a supernet over the connections of a scale-permuted network holds; its paths as data."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from crnas_jax.arch import connections
from crnas_jax.arch.connections import Pair
from crnas_jax.arch.scale_permuted import ScalePermuted
from crnas_jax.errors import UserError
from crnas_jax.runtime.options import check_choice, check_counts
from crnas_jax.spaces.draws import DRAWS, balanced, step_rng


@dataclasses.dataclass(frozen=True)
class ConnectionSupernetSpec:
    """What a supernet over the connections of a scale-permuted network holds.

    Attributes:
      arch: order, levels and kinds of the blocks; its own connections are one path.
      window: number of last built blocks that a block may read that is no output; at least 2.
      draws: how training draws paths, one of `draws.DRAWS`.

    Raises:
      UserError: a field has no such value.
    """

    arch: ScalePermuted
    window: int = 5
    draws: str = "balanced"

    def __post_init__(self):
        check_choice(self, "draws", DRAWS)
        check_counts(self, "window", least=2)

    @functools.cached_property
    def candidates(self) -> tuple[tuple[int, ...], ...]:
        """Blocks that each permuted block may read (`connections.candidates`)."""
        return connections.candidates(self.arch, self.window)

    @functools.cached_property
    def extras(self) -> tuple[tuple[int, ...], ...]:
        """Blocks that each permuted block might add as they are."""
        return connections.extra_candidates(self.arch)

    @property
    def num_paths(self) -> int:
        """Count the paths, those that differ in dead blocks alone included."""
        return math.prod(math.comb(len(read), 2) for read in self.candidates)

    def validate(self, parents: Sequence[Pair]) -> tuple[Pair, ...]:
        """Return the two parents of every permuted block, ascending.

        Raises:
          UserError: a block may not read them. `lax.switch` would clamp them without an error.
        """
        remedy = "give two candidates for every permuted block"
        if len(parents) != len(self.candidates):
            problem = f"{len(parents)} pairs for {len(self.candidates)} permuted blocks"
            raise UserError("connections", "parents", problem, remedy)
        pairs = []
        for index, (pair, read) in enumerate(
            zip(parents, self.candidates, strict=True), len(self.arch.stem)
        ):
            pair = tuple(int(parent) for parent in pair)
            if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(read):
                problem = f"{pair}, and it may read two of {read}"
                raise UserError("connections", f"parents of block {index}", problem, remedy)
            pairs.append((min(pair), max(pair)))
        return tuple(pairs)

    def network(self, parents: Sequence[Pair]) -> ScalePermuted:
        """Return the stand-alone architecture of a path, without its dead blocks."""
        return connections.connected(self.arch, self.validate(parents))[0]

    def choice(self, parents: Sequence[Pair]) -> dict[str, np.ndarray]:
        """Return the path with these connections.

        Args:
          parents: two parents of every permuted block, indices as the architecture counts.

        Returns:
          `parents` int32 [permuted blocks, 2], indices into `candidates`, ascending; `extras` bool
          [permuted blocks, blocks], which ones each adds as they are; `alive` bool [permuted
          blocks], which ones reach an output.

        Raises:
          UserError: this supernet has no such path.
        """
        pairs = self.validate(parents)
        network, kept = connections.connected(self.arch, pairs)
        num_stem, num_permuted = len(self.arch.stem), len(self.arch.blocks)
        extras = np.zeros((num_permuted, num_stem + num_permuted), bool)
        for node, index in zip(network.nodes(), kept, strict=True):
            for extra in node.extras:
                extras[index - num_stem, kept[extra]] = True
        places = [
            [read.index(parent) for parent in pair]
            for pair, read in zip(pairs, self.candidates, strict=True)
        ]
        alive = np.isin(np.arange(num_stem, num_stem + num_permuted), kept)
        return {"parents": np.array(places, np.int32), "extras": extras, "alive": alive}

    def parents_of(self, choice: dict[str, np.ndarray]) -> tuple[Pair, ...]:
        """Return the parents of a path; what `choice` takes."""
        rows = zip(choice["parents"], self.candidates, strict=True)
        return tuple((read[int(row[0])], read[int(row[1])]) for row, read in rows)

    def sample(self, seed: int, step: int) -> dict[str, np.ndarray]:
        """Draw the path of a training step: all pairs of a block alike, blocks independent."""
        rng, parents = step_rng(seed, step), []
        for place, read in enumerate(self.candidates):
            pairs = [(a, b) for index, b in enumerate(read) for a in read[:index]]
            uniform = self.draws == "uniform"
            index = rng.integers(len(pairs)) if uniform else balanced(len(pairs), seed, place, step)
            parents.append(pairs[index])
        return self.choice(parents)
