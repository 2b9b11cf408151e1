"""The training step, for stand-alone networks and supernets alike.

A supernet's step has three jitted parts: take the sampled blocks out of the banks, differentiate
and update those alone, write them back into the donated banks. Measured on the paper's grid this is
faster than one jit around all three, which copies banks. Gradient accumulation calls the middle
part once for each part of the batch: in a loop inside one program the CPU's convolutions would be
slow (see `ops.convolution`), and one more call costs nothing beside the part.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from crnas_jax.models.supernet.banks import WHOLE, gather, scatter
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import gathered, jit_once, replicated, splitting, state_sharding
from crnas_jax.training.job import Trainable

# What an average is taken of.
_AVERAGED = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """Initialise and advance a training state {"params", "batch_stats", "opt_state", "step"}.

    With `ema_decay` it holds an average of parameters and statistics too: "ema".

    Trainers that differ in nothing but their seed share compiled programs.

    Attributes:
      model: what is trained: a `models.build.Model`, or a custom one (`search.supernet.custom`).
      optimizer: an optax chain with a state that is elementwise in the parameters
        (`optimizer.make_optimizer`, which returns the same chain for equal options).
      mesh: batches are split over all of it; the state is replicated, or split over its axis `fsdp`
        (`mesh.state_sharding`).
      seed: seed of initialisation and of the draws of anchors and RoIs.
      ema_decay: see `ema_share`; 0 for no average.
    """

    model: Trainable
    optimizer: optax.GradientTransformation
    mesh: Mesh
    seed: int
    ema_decay: float = 0.0

    def init(self) -> PyTree:
        """Return the state before the first step."""
        return self._programs.create(self._seed)

    @property
    def shapes(self) -> PyTree:
        """Shapes and shardings of the state; nothing is computed."""
        return self._programs.shapes

    def step(
        self, state: PyTree, parts: Sequence[dict[str, Array]], choice=None
    ) -> tuple[PyTree, dict[str, Array]]:
        """Take one step; `state` is consumed.

        Args:
          state: what `init` or the step before returned.
          parts: the batch (see `mesh.put_parts`); gradients of its parts are averaged by their
            numbers of images, and each part is a mini-batch of its own for batch normalisation.
          choice: the path of a supernet; data, it never recompiles.

        Returns:
          The next state, and losses and the gradient's norm (before clipping).
        """
        programs, total = self._programs, None
        path = programs.take_path(state, choice)
        for part in parts[:-1]:
            path, total = programs.accumulate(path, part, choice, self._seed, total)
        path, metrics = programs.update(path, parts[-1], choice, self._seed, total)
        return programs.put_back(state, path, choice), metrics

    def programs(self, part: PyTree, choice=None) -> list[tuple]:
        """List the jitted functions of a step without accumulation, with their arguments' shapes.

        They are for compiling ahead, measuring and exporting; nothing is run.

        Args:
          part: the batch, arrays or shapes.
          choice: the path of a supernet.
        """
        programs, path = self._programs, self.path_shapes(choice)
        update = (programs.update.jitted, (path, part, choice, self._seed, None))
        (banks, _), (blocks, _) = programs.split(self.shapes), programs.split(path)
        if not banks:
            return [update]
        return [
            (programs.gather.jitted, (banks, choice)),
            update,
            (programs.scatter.jitted, (banks, blocks, choice)),
        ]

    def path_shapes(self, choice=None) -> PyTree:
        """Return shapes of the state on which a step runs: one path's, or all of a network's."""
        programs = self._programs
        shapes = jax.eval_shape(lambda state: programs.take_path(state, choice), self.shapes)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            programs.shardings,
        )

    @functools.cached_property
    def _programs(self):
        return _shared_programs(self.model, self.optimizer, self.mesh, self.ema_decay)

    @property
    def _seed(self):
        # What `jax.random.key` makes of a Python integer: jit would refuse those above 32 bits.
        return np.int64(self.seed)


@functools.lru_cache(maxsize=4)  # few, because compiled programs take memory
def _shared_programs(model, optimizer, mesh, ema_decay):
    """Return the programs for these arguments, the same for all trainers."""
    return _Programs(model, optimizer, mesh, ema_decay)


def ema_share(decay: float, step: Array) -> Array:
    """Return the share of an average that stays at a step (0-based).

    It rises to `decay` as (1 + step) / (10 + step), as in TensorFlow's average with a count of
    steps: the first weights are soon forgotten.
    """
    return jnp.minimum(decay, (1 + step) / (10 + step))


@dataclasses.dataclass(frozen=True, eq=False)
class _Programs:
    """The jitted functions behind `Trainer`, whose attributes it has; the seed is data to them."""

    model: Trainable
    optimizer: optax.GradientTransformation
    mesh: Mesh
    ema_decay: float

    @functools.cached_property
    def shapes(self):
        return self.create.eval_shape(np.int64(0))

    @functools.cached_property
    def create(self):
        return jit_once(self._create, out_shardings=self.shardings)

    def _create(self, seed):
        variables = self.model.init(jax.random.key(seed))
        averaged = {name: variables[name] for name in _AVERAGED}
        return {
            **averaged,
            **({"ema": averaged} if self.ema_decay else {}),
            "opt_state": self.optimizer.init(variables["params"]),
            "step": jnp.int32(0),
        }

    @functools.cached_property
    def _plain_shapes(self):
        """Shapes of the state without shardings, which follow from them."""
        return jax.eval_shape(self._create, np.int64(0))

    @functools.cached_property
    def shardings(self):
        """Shardings of the state, of a path's as well: each leaf has its axes there too."""
        whole = replicated(self.mesh)

        def split(leaf, is_bank):
            return state_sharding(self.mesh, leaf.shape, int(is_bank))

        shapes = self._plain_shapes
        params = jax.tree.map(split, shapes["params"], self._is_bank["params"])
        opt_state = optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            shapes["opt_state"],
            params,
            transform_non_params=lambda _: whole,
        )
        stats = jax.tree.map(lambda _: whole, shapes["batch_stats"])
        averaged = {"params": params, "batch_stats": stats}
        ema = {"ema": averaged} if self.ema_decay else {}
        return {**averaged, **ema, "opt_state": opt_state, "step": whole}

    def take_path(self, state, choice):
        banks, whole = self.split(state)
        return self._merge(self.gather(banks, choice), whole) if banks else state

    def put_back(self, state, path, choice):
        banks, _ = self.split(state)
        if not banks:
            return path
        blocks, whole = self.split(path)
        return self._merge(self.scatter(banks, blocks, choice), whole)

    def _rows(self, choice):
        """Return which rows of each leaf of the state the path uses (see `banks.rows`)."""
        shapes = self._plain_shapes
        where = {name: self.model.rows(shapes[name], choice) for name in _AVERAGED}
        opt_state = optax.tree_map_params(
            self.optimizer,
            lambda _, index: index,
            shapes["opt_state"],
            where["params"],
            transform_non_params=lambda _: WHOLE,
        )
        ema = {"ema": where} if self.ema_decay else {}
        return {**where, **ema, "opt_state": opt_state, "step": WHOLE}

    @functools.cached_property
    def _is_bank(self):
        """For each leaf of the state whether it is a bank; a static tree."""
        rows = jax.eval_shape(lambda: self._rows(self.model.example_choice))
        return jax.tree.map(lambda index: index.ndim > 0, rows)

    def split(self, state):
        """Return the banks and the other leaves, as lists."""
        leaves = list(zip(*map(jax.tree.leaves, (self._is_bank, state)), strict=True))
        return [leaf for bank, leaf in leaves if bank], [leaf for bank, leaf in leaves if not bank]

    def _merge(self, banks, whole):
        banks, whole = iter(banks), iter(whole)
        return jax.tree.map(lambda bank: next(banks) if bank else next(whole), self._is_bank)

    @functools.cached_property
    def gather(self):
        def take(banks, choice):
            return gather(banks, self.split(self._rows(choice))[0])

        return hosts.jit(take, out_shardings=self.split(self.shardings)[0])

    @functools.cached_property
    def scatter(self):
        def put(banks, blocks, choice):
            return scatter(banks, self.split(self._rows(choice))[0], blocks)

        banks, _ = self.split(self.shardings)
        return hosts.jit(put, donate_argnums=0, out_shardings=banks)

    @functools.cached_property
    def accumulate(self):
        whole = replicated(self.mesh)
        sums = {"gradient": self.shardings["params"], "losses": whole, "images": whole}
        return hosts.jit(
            self._add_gradient, donate_argnums=(0, 4), out_shardings=(self.shardings, sums)
        )

    @functools.cached_property
    def update(self):
        shardings = (self.shardings, replicated(self.mesh))
        return hosts.jit(self._advance, donate_argnums=0, out_shardings=shardings)

    def _add_gradient(self, state, batch, choice, seed, total):
        """Return the state with new statistics, and `total` (None for nothing) plus this part."""
        step_key = jax.random.fold_in(jax.random.key(seed), state["step"])
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(batch["image_key"])

        def loss(params):
            with splitting(self.mesh):
                # A bank's blocks are gathered where each is run.
                whole = jax.tree.map(
                    lambda is_bank, leaf: leaf if is_bank else gathered(leaf),
                    self._is_bank["params"],
                    params,
                )
                variables = {"params": whole, "batch_stats": state["batch_stats"]}
                losses, batch_stats = self.model.losses(variables, batch, choice, keys)
            return sum(losses.values()), (losses, batch_stats)

        gradient, (losses, batch_stats) = jax.grad(loss, has_aux=True)(state["params"])
        num_images = (batch["weight"] > 0).sum().astype(jnp.float32)
        sums = {"gradient": gradient, "losses": losses}
        sums = {**jax.tree.map(lambda leaf: num_images * leaf, sums), "images": num_images}
        if total is not None:
            sums = jax.tree.map(jnp.add, total, sums)
        return {**state, "batch_stats": batch_stats}, sums

    def _advance(self, state, batch, choice, seed, total):
        state, sums = self._add_gradient(state, batch, choice, seed, total)
        means = jax.tree.map(lambda leaf: leaf / sums["images"], sums)
        gradient, losses = means["gradient"], means["losses"]
        mask = self.model.trainable_mask(gradient)
        if mask is not None:  # frozen parameters do not count in the norm that is clipped
            gradient = jax.tree.map(lambda m, g: jnp.where(m, g, 0), mask, gradient)
        updates, opt_state = self.optimizer.update(gradient, state["opt_state"], state["params"])
        if mask is not None:  # frozen parameters keep their momentum too
            updates = jax.tree.map(lambda m, u: jnp.where(m, u, 0), mask, updates)
            mask = optax.tree_map_params(
                self.optimizer,
                lambda _, trainable: trainable,
                opt_state,
                mask,
                transform_non_params=lambda _: True,
            )
            opt_state = jax.tree.map(jnp.where, mask, opt_state, state["opt_state"])
        metrics = {"loss": sum(losses.values()), **losses}
        metrics["gradient_norm"] = optax.tree.norm(gradient)
        new_state = {
            "params": optax.apply_updates(state["params"], updates),
            "batch_stats": state["batch_stats"],
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
        if self.ema_decay:
            share = ema_share(self.ema_decay, state["step"])
            new_state["ema"] = jax.tree.map(
                lambda average, new: share * average + (1 - share) * new,
                state["ema"],
                {name: new_state[name] for name in _AVERAGED},
            )
        return new_state, metrics
