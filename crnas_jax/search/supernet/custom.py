"""Others' networks in our trainer and searches.

A network needs no Flax and no detail of ours: a space, `init`, `apply` and `cost` are enough.
"""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from crnas_jax.errors import UserError


class Space(Protocol):
    """What may be chosen. `StageSpace` and `OperationSpace` are two.

    Strategies ask it for the codes of a budget, None where there are no budgets. The greedy search
    (`operation_search`) asks for `blocks`, the length of a code, `operations`, the number of values
    of its entries, and `begins`, whether a code may begin so, and not for `enumerate`; evolution
    also for `mutate` and `cross`.
    """

    def sample(self, rng: np.random.Generator, budget: float | None = None) -> tuple[int, ...]:
        """One code."""

    def enumerate(self, budget: float | None = None) -> Iterable[tuple[int, ...]]:
        """All codes."""


class Searchable(Protocol):
    """A supernet of anybody's.

    Attributes:
      space: of its codes.
    """

    space: Space

    def init(self, key: Array) -> PyTree:
        """Freshly drawn variables: {"params", "batch_stats"}, the latter as you like."""

    def apply(self, variables: PyTree, choice: Array, batch: dict[str, Array]) -> dict[str, Array]:
        """The subnet of `choice` (int32, a code) on a batch of the contract (see
        `data.transforms.DetectionRows`).

        The choice is traced: pick branches with `lax.switch`. Of what comes back training adds up
        the entries whose name begins with `loss` and keeps `batch_stats`, if there are any; scoring
        takes `boxes` [B, n, 4] in canvas pixels, `scores` (higher is surer), `labels` (from 1) and
        `valid` [B, n], in any order.
        What is not asked for is not computed. Nothing is drawn: the same arguments give the same.
        """

    def cost(self, choice: tuple[int, ...]) -> float:
        """Of a subnet, in any unit."""


@dataclasses.dataclass(frozen=True, eq=False)  # whatever the network is, this has a hash
class Foreign:
    """A `Searchable` as `Trainer`, `train`, `SubnetEvaluator` and `SubnetScorer` want a model.

    In a step nothing moves the parameters that got no gradient, neither momentum nor weight decay:
    those are the branches that were not sampled. Score it with `ScoreOptions(bn="running")`.
    """

    network: Searchable

    # There are no banks: every step sees all variables.
    has_banks = False

    def init(self, key: Array) -> PyTree:
        """As the network's, with `batch_stats`."""
        return {"batch_stats": {}, **self.network.init(key)}

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """The choice of a step."""
        return choice_of(self.network.space.sample(rng))

    def losses(self, variables: PyTree, batch, choice, keys) -> tuple[dict[str, Array], PyTree]:
        """Training losses, and the statistics after this mini-batch."""
        del keys
        found = self.network.apply(variables, choice, batch)
        losses = {name: value for name, value in found.items() if name.startswith("loss")}
        return losses, found.get("batch_stats", variables["batch_stats"])

    def apply(self, variables: PyTree, batch, choice, bn: str = "running") -> dict[str, Array]:
        """Detections."""
        del bn
        return self.network.apply(variables, choice, batch)

    def path(self, variables: PyTree, choice) -> PyTree:
        """All variables."""
        del choice
        return variables

    def moves(self, gradient: PyTree) -> PyTree:
        """Which parameters got a gradient."""
        return jax.tree.map(lambda leaf: jnp.any(leaf != 0), gradient)


@dataclasses.dataclass(frozen=True)
class ForeignPaths:
    """As `models.shared_paths.SharedPaths`; a network of which nothing is known shares nothing."""

    model: Foreign

    def paths(self, choices: list) -> tuple[list, tuple[int, ...]]:
        """One stage of one block each."""
        return [
            (((index, *np.ravel(choice).tolist()),),) for index, choice in enumerate(choices)
        ], (1,)

    def begin(self, weights, batch):
        """Nothing is carried from one visit to the next."""
        del weights, batch
        return (), ()

    def visit(self, weights, batch, state, choice, step):
        """The state, detections, no moments."""
        del step
        found = self.model.apply(weights.banks, batch, choice, weights.bn)
        found = {name: found[name] for name in ("boxes", "scores", "labels", "valid")}
        # COCO's matching goes by the order, best first.
        order = jnp.argsort(jnp.where(found["valid"], -found["scores"], jnp.inf), 1)
        return state, jax.vmap(lambda tree, o: jax.tree.map(lambda x: x[o], tree))(found, order), ()

    def detections(self, weights, found, image_size, canvas, mesh):
        """What the visits found."""
        del weights, image_size, canvas, mesh
        return found


def choice_of(code, batch: int = 0) -> np.ndarray:
    """A code as `Searchable.apply` takes it, the same on every mini-batch."""
    del batch
    return np.asarray(code, np.int32)


def affordable(network: Searchable, limit: float) -> list[tuple[int, ...]]:
    """All codes that cost at most `limit`, ascending.

    Raises:
      UserError: there are none.
    """
    costs = {tuple(code): network.cost(code) for code in network.space.enumerate()}
    codes = sorted(code for code, cost in costs.items() if cost <= limit)
    if not codes:
        least = f"the cheapest costs {min(costs.values(), default=float('nan')):g}"
        raise UserError("search", "limit", f"no code costs {limit:g} or less", least)
    return codes
