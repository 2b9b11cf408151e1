"""REINFORCE with an LSTM that draws a code decision by decision (Zoph and Le, arXiv 1611.01578).

The paper searches SpineNet so and says nothing of its settings; the defaults are this project's
rules (one layer of 100 units, embeddings of 32, a moving average as baseline).
"""

import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from crnas_jax.errors import UserError
from crnas_jax.runtime.options import (
    check_below_one,
    check_counts,
    check_not_negative,
    check_positive,
)
from crnas_jax.spaces.space import Code, Space

# Logits of values that a decision cannot have.
_NEVER = -1e9
# Least deviation that rewards are divided by.
_SMALLEST = 1e-6
# Draws for a proposal until next to nothing counts as allowed.
_MAX_DRAWS = 1000


@runtime_checkable
class DecisionSpace(Space, Protocol):
    """A space whose codes are sequences of decisions.

    Attributes:
      decisions: for each entry of a code its `kind` and `num_options`.
    """

    decisions: tuple

    def mask(self, partial: Code) -> np.ndarray:
        """Return which values the next decision may have, bool [options]."""


@dataclasses.dataclass(frozen=True)
class ControllerOptions:
    """Settings of the controller.

    Attributes:
      units: units of the LSTM.
      embedding: length of the embedding of a decision.
      rate: learning rate of Adam.
      entropy: weight of the entropy of the decisions.
      decay: what stays of the moving averages of rewards at a result.
      batch: results of an update.
    """

    units: int = 100
    embedding: int = 32
    rate: float = 1e-3
    entropy: float = 1e-3
    decay: float = 0.95
    batch: int = 8

    def __post_init__(self):
        check_counts(self, "units", "embedding", "batch")
        check_positive(self, "rate", "decay")
        check_below_one(self, "decay")
        check_not_negative(self, "entropy")


class Reinforce:
    """The controller as a strategy (`proposing.Proposer`).

    Its state holds `leaves`, the weights and Adam's state; `mean` and `square`, the moving averages
    of rewards and of their squared distance to it; `count`, the number of results; `waiting`,
    results since the last update.
    """

    def __init__(self, space: DecisionSpace, allows=None, options=ControllerOptions(), seed=0):
        """Describe the controller.

        Args:
          space: the space of codes, without limits.
          allows: function from a code to whether it is within the limits; others are drawn again.
          options: settings.
          seed: seed of the first weights.
        """
        self._space, self._allows, self._options, self._seed = space, allows, options, seed
        kinds: dict[str, int] = {}
        for decision in space.decisions:
            kinds.setdefault(decision.kind, decision.num_options)
        starts = dict(zip(kinds, np.cumsum([0, *kinds.values()]).tolist(), strict=False))
        self._starts = [starts[decision.kind] for decision in space.decisions]
        self._num_values = sum(kinds.values())
        self._optimizer = optax.adam(options.rate)
        first = self._first()
        self._structure = jax.tree.structure(first)

    def _first(self):
        params = init_controller(self._options, self._num_values, self._seed)
        return jax.device_get((params, self._optimizer.init(params)))

    def begin(self) -> dict:
        """Return the state before the first result."""
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._first())]
        return {"leaves": leaves, "mean": 0.0, "square": 0.0, "count": 0, "waiting": []}

    def weights(self, state: dict) -> PyTree:
        """Return the weights in a state."""
        return jax.tree.unflatten(self._structure, state["leaves"])[0]

    def propose(self, state: dict, rng: np.random.Generator) -> Code:
        """Draw a code; one that is not allowed is drawn again as a whole."""
        weights = self.weights(state)
        for _ in range(_MAX_DRAWS):
            code = self._draw(weights, rng)
            if self._allows is None or self._allows(code):
                return code
        problem = f"the controller drew {_MAX_DRAWS} networks, none of which they allow"
        raise UserError("search space", "constraints", problem, "relax them")

    def _draw(self, weights, rng):
        """Draw the decisions one after another, in NumPy: a call for each would cost more."""
        code, last = (), self._num_values
        carry = np.zeros(self._options.units, np.float32), np.zeros(self._options.units, np.float32)
        for start in self._starts:
            carry, logits = controller_step(np, weights, carry, weights["embedding"][last])
            mask = self._space.mask(code)
            scores = np.where(mask, logits[start : start + len(mask)].astype(np.float64), -np.inf)
            # Gumbel's trick: the largest of the scores plus noise is a draw from their softmax.
            value = int(np.argmax(scores + rng.gumbel(size=len(mask))))
            code, last = (*code, value), start + value
        return code

    def update(self, state: dict, code: Code, score: float) -> dict:
        """Return the state after a result; every `batch` of them the weights are moved."""
        options, count = self._options, state["count"]
        waiting = [*state["waiting"], (tuple(code), float(score))]
        mean, square = state["mean"], state["square"]
        if count == 0:
            mean = score
        advantage = score - mean
        square = options.decay * square + (1 - options.decay) * advantage**2
        mean = options.decay * mean + (1 - options.decay) * score
        state = {**state, "mean": mean, "square": square, "count": count + 1, "waiting": waiting}
        if len(waiting) < options.batch:
            return state
        # The moving square begins at 0: few results count as much as they are, as in Adam.
        spread = np.sqrt(square / (1 - options.decay ** (count + 1))) + _SMALLEST
        advantages = [(score - mean) / spread for _, score in waiting]
        leaves = self._advance(state["leaves"], [code for code, _ in waiting], advantages)
        return {**state, "leaves": leaves, "waiting": []}

    def _advance(self, leaves, codes, advantages):
        values, masks = self.arrays(codes)
        shares = np.asarray(advantages, np.float32) / len(codes)
        state = jax.tree.unflatten(self._structure, leaves)
        state = _advance(self._optimizer, self._options.entropy, state, values, masks, shares)
        return [np.asarray(leaf) for leaf in jax.device_get(jax.tree.leaves(state))]

    def arrays(self, codes: list[Code]) -> tuple[np.ndarray, np.ndarray]:
        """Return codes as `policy_objective` takes them: values and masks of their decisions."""
        values = np.array([np.add(code, self._starts) for code in codes], np.int32)
        masks = np.zeros((*values.shape, self._num_values), bool)
        for row, code in enumerate(codes):
            for position, start in enumerate(self._starts):
                mask = self._space.mask(code[:position])
                masks[row, position, start : start + len(mask)] = mask
        return values, masks


def init_controller(options: ControllerOptions, num_values: int, seed: int) -> PyTree:
    """Draw the weights of a controller; all decisions are close to uniform at first."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.uniform(-0.1, 0.1, shape).astype(np.float32)

    return {
        "embedding": draw(num_values + 1, options.embedding),
        "input": draw(options.embedding, 4 * options.units),
        "recurrent": draw(options.units, 4 * options.units),
        "bias": np.zeros(4 * options.units, np.float32),
        "output": draw(options.units, num_values),
    }


def controller_step(xp, weights, carry, x):
    """Advance the LSTM by a decision; return its carry, and the logits of the next one's values.

    Args:
      xp: `numpy` or `jax.numpy`.
      weights: what `init_controller` draws.
      carry: cell and output before, each [units].
      x: embedding of the last decision, [embedding].
    """
    cell, output = carry
    gates = x @ weights["input"] + output @ weights["recurrent"] + weights["bias"]
    enter, forget, candidate, leave = xp.split(gates, 4)
    sigmoid = _sigmoid(xp)
    cell = sigmoid(forget + 1.0) * cell + sigmoid(enter) * xp.tanh(candidate)
    output = sigmoid(leave) * xp.tanh(cell)
    return (cell, output), output @ weights["output"]


def _sigmoid(xp):
    return lambda x: 0.5 * (xp.tanh(0.5 * x) + 1.0)


def log_probabilities(
    weights: PyTree,
    values: ArrayLike,
    masks: ArrayLike,
) -> tuple[Array, Array]:
    """Return the logarithm of each code's probability, and the entropy of its decisions: [codes].

    Args:
      weights: weights of the controller.
      values: decisions, as indices into the values of all kinds, int32 [codes, decisions].
      masks: the values that each may have, bool [codes, decisions, values].
    """
    zeros = jnp.zeros(weights["recurrent"].shape[0])

    def of_code(values, masks):
        before = jnp.concatenate([jnp.array([masks.shape[-1]], jnp.int32), values[:-1]])

        def step(carry, row):
            x, value, mask = row
            carry, logits = controller_step(jnp, weights, carry, x)
            logs = jax.nn.log_softmax(jnp.where(mask, logits, _NEVER))
            entropy = -jnp.where(mask, jnp.exp(logs) * logs, 0.0).sum()
            return carry, (logs[value], entropy)

        rows = jnp.asarray(weights["embedding"])[before], values, masks
        _, (logs, entropies) = lax.scan(step, (zeros, zeros), rows)
        return logs.sum(), entropies.sum()

    return jax.vmap(of_code)(values, masks)


def policy_objective(
    weights: PyTree, values: ArrayLike, masks: ArrayLike, shares: ArrayLike, entropy: ArrayLike
) -> Array:
    """Return what the controller ascends: its gradient estimates that of the mean reward.

    Args:
      weights: weights of the controller.
      values: see `log_probabilities`.
      masks: see `log_probabilities`.
      shares: advantage of each code over the number of codes; over all codes of a space, the
        probability times the reward gives the policy gradient exactly.
      entropy: weight of the entropy.
    """
    logs, entropies = log_probabilities(weights, values, masks)
    return (logs * shares).sum() + entropy * entropies.mean()


@functools.partial(jax.jit, static_argnums=(0,))
def _advance(optimizer, entropy, state, values, masks, shares):
    weights, opt_state = state
    gradient = jax.grad(policy_objective)(weights, values, masks, shares, entropy)
    descent = jax.tree.map(jnp.negative, gradient)
    updates, opt_state = optimizer.update(descent, opt_state, weights)
    return optax.apply_updates(weights, updates), opt_state
