"""The training step, for stand-alone networks and supernets alike.

A supernet's step has three jitted parts: take the sampled blocks out of the banks, differentiate
and update those alone, put them back into the donated banks. Measured on the paper's grid this is
faster than one jit around all three, which copies banks.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from crnas_jax.models import supernet
from crnas_jax.models.build import Detector
from crnas_jax.search_space import OperationSpace, StageSpace
from crnas_jax.training.mesh import replicated


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Initialises and advances a training state {"params", "batch_stats", "opt_state", "step"}.

    Attributes:
      detector: what is trained.
      optimizer: an optax chain whose state is elementwise in the parameters.
      mesh: the state is replicated over it, batches are split over its axis `data`.
      seed: of initialisation and of the draws of anchors and RoIs.
    """

    detector: Detector
    optimizer: optax.GradientTransformation
    mesh: Mesh
    seed: int

    def init(self) -> PyTree:
        """The state before the first step."""

        def create():
            variables = self.detector.init(jax.random.key(self.seed))
            return {
                "params": variables["params"],
                "batch_stats": variables["batch_stats"],
                "opt_state": self.optimizer.init(variables["params"]),
                "step": jnp.int32(0),
            }

        return jax.jit(create, out_shardings=replicated(self.mesh))()

    def step(
        self, state: PyTree, batch: dict[str, Array], choice=None
    ) -> tuple[PyTree, dict[str, Array]]:
        """One step; `state` is consumed. `choice`, the path, is data: it never recompiles."""
        if not self.detector.is_supernet:
            return self._update(state, batch, None)
        banks, whole = self._split(state)
        blocks = self._gather(banks, choice)
        blocks, whole, metrics = self._update_path(blocks, whole, batch, choice)
        return self._merge(self._scatter(banks, blocks, choice), whole), metrics

    @functools.cached_property
    def _shapes(self):
        return jax.eval_shape(self.init)

    def _rows(self, choice):
        """Which rows of each leaf of the state the path uses (see `supernet.rows`)."""
        names = ("params", "batch_stats")
        where = {name: self.detector.rows(self._shapes[name], choice) for name in names}
        opt_state = optax.tree_map_params(
            self.optimizer,
            lambda _, index: index,
            self._shapes["opt_state"],
            where["params"],
            transform_non_params=lambda _: supernet.WHOLE,
        )
        return {**where, "opt_state": opt_state, "step": supernet.WHOLE}

    @functools.cached_property
    def _is_bank(self):
        """For each leaf of the state whether it is a bank; a static tree."""
        choice = self.detector.spec.choice(self.detector.spec.places)
        rows = jax.eval_shape(lambda: self._rows(choice))
        return jax.tree.map(lambda index: index.ndim > 0, rows)

    def _split(self, state):
        """The banks and the other leaves, as lists."""
        leaves = list(zip(*map(jax.tree.leaves, (self._is_bank, state)), strict=True))
        return [leaf for bank, leaf in leaves if bank], [leaf for bank, leaf in leaves if not bank]

    def _merge(self, banks, whole):
        banks, whole = iter(banks), iter(whole)
        return jax.tree.map(lambda bank: next(banks) if bank else next(whole), self._is_bank)

    @functools.cached_property
    def _gather(self):
        def gather(banks, choice):
            return supernet.gather(banks, self._split(self._rows(choice))[0])

        return jax.jit(gather, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _update_path(self):
        def update(blocks, whole, batch, choice):
            state, metrics = self._advance(self._merge(blocks, whole), batch, choice)
            return *self._split(state), metrics

        return jax.jit(update, donate_argnums=(0, 1), out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _scatter(self):
        def scatter(banks, blocks, choice):
            return supernet.scatter(banks, self._split(self._rows(choice))[0], blocks)

        return jax.jit(scatter, donate_argnums=0, out_shardings=replicated(self.mesh))

    @functools.cached_property
    def _update(self):
        return jax.jit(self._advance, donate_argnums=0, out_shardings=replicated(self.mesh))

    def _advance(self, state, batch, choice):
        step_key = jax.random.fold_in(jax.random.key(self.seed), state["step"])
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(batch["image_key"])

        def loss(params):
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            losses, batch_stats = self.detector.losses(variables, batch, choice, keys)
            return sum(losses.values()), (losses, batch_stats)

        gradient, (losses, batch_stats) = jax.grad(loss, has_aux=True)(state["params"])
        updates, opt_state = self.optimizer.update(gradient, state["opt_state"], state["params"])
        metrics = {"loss": sum(losses.values()), **losses}
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": batch_stats,
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        return new, metrics


def sample_choice(detector: Detector, seed: int, step: int) -> dict[str, np.ndarray] | None:
    """The path of a step, uniform, one for all devices; None for a stand-alone network."""
    if not detector.is_supernet:
        return None
    spec = detector.spec
    rng = np.random.default_rng([seed, 3, step])
    depths = StageSpace(spec.grids).sample(rng)
    return spec.choice(depths, OperationSpace(depths, spec.dilations).sample(rng))
