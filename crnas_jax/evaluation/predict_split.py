"""A function of a network over all mini-batches of a split."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.parallel.mesh import make_mesh, put_batch, replicated
from crnas_jax.runtime import interruption


def over_split(
    function: Callable,
    variables: PyTree,
    source,
    row: Callable,
    batch_size: int,
    devices: int | None = None,
    choice_of: Callable[[int], PyTree] = lambda index: None,
) -> Iterator[tuple[dict[str, np.ndarray], PyTree]]:
    """Yields every mini-batch, in order, and what the function makes of it, NumPy.

    Args:
      function: of (variables, batch, choice); compiled here.
      variables: its first argument.
      source: the split.
      row: from its records to rows of a batch (see `loader.batches`).
      batch_size: images in a mini-batch.
      devices: how many to use; all when None.
      choice_of: from a mini-batch's number to the path to run on it.

    Raises:
      Stopped: somebody asked to stop.
    """
    mesh = make_mesh(batch_size, devices)
    run = jax.jit(function, out_shardings=replicated(mesh))
    variables = jax.device_put(variables, replicated(mesh))
    plan = loader.Plan(source.sizes, batch_size, seed=None)
    for index, batch in enumerate(loader.batches(source, plan, row)):
        found = run(variables, put_batch(mesh, batch), choice_of(index))
        yield batch, jax.tree.map(np.asarray, found)
        interruption.stop_if_requested("the evaluation is done again from its beginning")
