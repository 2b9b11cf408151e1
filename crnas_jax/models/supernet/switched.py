"""`lax.switch` that keeps nothing of its branches for the backward pass."""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree


def switched(
    index: Int[ArrayLike, ""], branches: Sequence[Callable], operands: PyTree, constants: PyTree
) -> tuple[Array, PyTree]:
    """Apply the branch that `index` picks.

    Differentiation through `lax.switch` would keep the residuals of all branches, and with
    `jax.checkpoint` on each still a copy of what it reads. Here the branch is run again in the
    backward pass, from the operands themselves.

    Args:
      index: index into `branches`; out of range it is clamped.
      branches: functions of (operands, constants) that return (array, other results), of equal
        shapes.
      operands: float arrays, with respect to which the array is differentiated.
      constants: what no gradient goes to.

    Returns:
      The results of the branch; the other ones have no gradient.
    """

    @jax.custom_vjp
    def run(index, operands, constants):
        return lax.switch(index, branches, operands, constants)

    def forward(index, operands, constants):
        return run(index, operands, constants), (index, operands, constants)

    def backward(residuals, gradients):
        index, operands, constants = residuals

        def pull(branch):
            def back(operands, gradient):
                _, pull_back = jax.vjp(lambda operands: branch(operands, constants)[0], operands)
                return pull_back(gradient)[0]

            return back

        pulled = lax.switch(index, [pull(branch) for branch in branches], operands, gradients[0])
        return None, pulled, None

    run.defvjp(forward, backward)
    x, others = run(index, operands, constants)
    return x, lax.stop_gradient(others)
