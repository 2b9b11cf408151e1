"""Batch normalisation statistics of subnets, recomputed on training images.

The running averages of a supernet mix all paths; scored with them, a subnet is not itself. The
statistics here are pooled in closed form over all images, between-batch variance included; an
exponential average would weigh the last few batches alone.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from crnas_jax.models.supernet.prefix_tree import Schedule
from crnas_jax.search.supernet.evaluator import SubnetEvaluator


def calibrate(
    evaluator: SubnetEvaluator, variables: PyTree, batches: Iterable, choices: list
) -> list[PyTree]:
    """Return the statistics of every subnet over the images of `batches`, NumPy.

    Every image is read once for all subnets, and blocks that they share are run once.

    Args:
      evaluator: evaluator of the supernet.
      variables: the supernet's banks.
      batches: mini-batches on the devices.
      choices: paths of the subnets.
    """
    totals, num_images = None, 0.0
    for batch in batches:
        batch_images = jnp.sum(batch["weight"] > 0).astype(jnp.float32)
        sums = _sums(evaluator.moments(variables, batch, choices), batch_images)
        totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
        num_images += batch_images
    stem, chunks = jax.device_get(pool(totals, num_images))
    visits = [
        jax.tree.map(lambda leaf, i=index: leaf[i], chunk)
        for chunk in chunks
        for index in range(len(jax.tree.leaves(chunk)[0]))
    ]
    return _complete(evaluator.schedule(choices), visits, stem)


def _complete(schedule: Schedule, visits: list[PyTree], stem: PyTree) -> list[PyTree]:
    """Return all statistics of each subnet; blocks it did not run come from the visit before."""
    complete, previous = [None] * len(schedule.order), None
    for visit, position in enumerate(schedule.order):
        tree = visits[visit]
        backbone = {**tree["backbone"], "stem": stem}
        for stage, start in enumerate(schedule.visits.start[visit]):
            if not start:
                continue
            name = f"stage{stage + 1}"
            earlier = previous["backbone"][name]
            backbone[name] = {
                kind: jax.tree.map(
                    lambda new, old, rows=start - (kind == "rest"): np.concatenate(
                        [old[:rows], new[rows:]]
                    ),
                    stats,
                    earlier[kind],
                )
                for kind, stats in backbone[name].items()
            }
        previous = complete[position] = {**tree, "backbone": backbone}
    return complete


@jax.jit
def _sums(moments, num_images):
    """Return sums over the images of a batch of the first and second moments."""

    def layer(node):
        return {
            "mean": num_images * node["mean"],
            "var": num_images * (node["var"] + jnp.square(node["mean"])),
        }

    return jax.tree.map(layer, moments, is_leaf=_is_layer)


@jax.jit
def pool(totals: PyTree, num_images) -> PyTree:
    """Return mean and variance from summed first and second moments (law of total variance)."""

    def layer(node):
        mean = node["mean"] / num_images
        return {"mean": mean, "var": jnp.maximum(node["var"] / num_images - jnp.square(mean), 0)}

    return jax.tree.map(layer, totals, is_leaf=_is_layer)


def _is_layer(node):
    return isinstance(node, dict) and set(node) == {"mean", "var"}
