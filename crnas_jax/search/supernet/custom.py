"""Networks of your own in the trainer and the searches.

A network needs no Flax and no detail of this package: a space, `init`, `apply` and `cost` are
enough.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from crnas_jax.errors import UserError
from crnas_jax.models.supernet.banks import WHOLE
from crnas_jax.spaces.draws import step_rng
from crnas_jax.spaces.space import Code, Space


@runtime_checkable
class Searchable(Protocol):
    """A supernet of your own.

    Attributes:
      space: space of its codes; training calls `sample`, strategies call what `Space` says.
    """

    space: Space

    def init(self, key: Array) -> PyTree:
        """Draw fresh variables: {"params", "batch_stats"}, the latter optional and of any form."""

    def apply(self, variables: PyTree, choice: Array, batch: dict[str, Array]) -> dict[str, Array]:
        """Run the subnet of `choice` (int32, a code) on a batch (`data.transforms.DetectionRows`).

        The choice is traced: pick branches with `lax.switch`. Training adds up the returned entries
        with a name that begins with `loss` and stores `batch_stats`, if there are any; scoring
        takes `boxes` [B, n, 4] in canvas pixels, `scores` (higher is surer), `labels` (from 1) and
        `valid` [B, n], in any order. Entries that are not used are not computed. Nothing is drawn:
        the same arguments give the same result.
        """

    def cost(self, choice: Code) -> float:
        """Return the cost of a subnet, in any unit."""


@dataclasses.dataclass(frozen=True, eq=False)  # hashable, whatever the network is
class CustomModel:
    """A `Searchable` with the interface of a model for training, evaluator and scorer.

    In a step nothing moves the parameters without a gradient, neither momentum nor weight decay:
    these are the branches that were not sampled. Score it with `ScoreOptions(bn="running")`.

    Attributes:
      network: the network.
    """

    network: Searchable

    # There are no banks: every step sees all variables.
    example_choice = None

    def init(self, key: Array) -> PyTree:
        """Draw fresh variables with `batch_stats`."""
        return {"batch_stats": {}, **self.network.init(key)}

    def sample(self, seed: int, step: int) -> np.ndarray:
        """Draw the choice of a training step."""
        return code_to_choice(self.network.space.sample(step_rng(seed, step)))

    def losses(self, variables: PyTree, batch, choice, keys) -> tuple[dict[str, Array], PyTree]:
        """Return the training losses, and the statistics after this mini-batch."""
        del keys
        outputs = self.network.apply(variables, choice, batch)
        losses = {name: value for name, value in outputs.items() if name.startswith("loss")}
        return losses, outputs.get("batch_stats", variables["batch_stats"])

    def apply(self, variables: PyTree, batch, choice, bn: str = "running") -> dict[str, Array]:
        """Return the detections."""
        del bn
        return self.network.apply(variables, choice, batch)

    def rows(self, tree: PyTree, choice) -> PyTree:
        """Return `banks.WHOLE` for every leaf."""
        del choice
        return jax.tree.map(lambda leaf: WHOLE, tree)

    def trainable_mask(self, gradient: PyTree) -> PyTree:
        """Return which parameters got a gradient."""
        return jax.tree.map(lambda leaf: jnp.any(leaf != 0), gradient)


@dataclasses.dataclass(frozen=True)
class CustomPaths:
    """The interface of `shared_paths.SharedPaths`; custom subnets share no blocks.

    Attributes:
      model: the custom network.
    """

    model: CustomModel

    gives_statistics = False

    def paths(self, choices: list) -> tuple[list, tuple[int, ...]]:
        """Return paths of one stage with one block each."""
        return [
            (((index, *np.ravel(choice).tolist()),),) for index, choice in enumerate(choices)
        ], (1,)

    def begin(self, weights, batch):
        """Return empty state and moments: nothing is carried from one visit to the next."""
        del weights, batch
        return (), ()

    def visit(self, weights, batch, state, choice, visit):
        """Return the state, detections, and no moments."""
        del visit
        outputs = self.model.apply(weights.banks, batch, choice, weights.bn)
        detections = {name: outputs[name] for name in ("boxes", "scores", "labels", "valid")}
        # COCO's matching takes detections in order, best first.
        order = jnp.argsort(jnp.where(detections["valid"], -detections["scores"], jnp.inf), 1)
        sort = jax.vmap(lambda tree, image_order: jax.tree.map(lambda x: x[image_order], tree))
        return state, sort(detections, order), ()

    def detections(self, weights, detections, image_size, canvas, mesh):
        """Return the detections of the visits."""
        del weights, image_size, canvas, mesh
        return detections


def code_to_choice(code: Code, batch: int = 0) -> np.ndarray:
    """Return a code in the form `Searchable.apply` takes, the same on every mini-batch."""
    del batch
    return np.asarray(code, np.int32)


def affordable(network: Searchable, limit: float) -> list[Code]:
    """List all codes that cost at most `limit`, ascending.

    Raises:
      UserError: there are none.
    """
    costs = {tuple(code): network.cost(code) for code in network.space.enumerate()}
    codes = sorted(code for code, cost in costs.items() if cost <= limit)
    if not codes:
        cheapest = f"the cheapest costs {min(costs.values(), default=float('nan')):g}"
        raise UserError("search", "limit", f"no code costs {limit:g} or less", cheapest)
    return codes
