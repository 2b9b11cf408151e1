"""Batch normalisation statistics of subnets, recomputed on training images.

The running averages of a supernet mix all paths; a subnet scored with them is not itself. The
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
    """Statistics of every subnet over the images of `batches`, NumPy.

    Every image is read once for all subnets, and what they share is run once.
    """
    totals, images = None, 0.0
    for batch in batches:
        number = jnp.sum(batch["weight"] > 0).astype(jnp.float32)
        weighted = _accumulate(evaluator.moments(variables, batch, choices), number)
        totals = weighted if totals is None else jax.tree.map(jnp.add, totals, weighted)
        images += number
    stem, chunks = jax.device_get(pool(totals, images))
    visits = [
        jax.tree.map(lambda leaf, i=index: leaf[i], chunk)
        for chunk in chunks
        for index in range(len(jax.tree.leaves(chunk)[0]))
    ]
    return _whole(evaluator.schedule(choices), visits, stem)


def _whole(schedule: Schedule, visits: list[PyTree], stem: PyTree) -> list[PyTree]:
    """For each subnet of the list all its statistics: those of blocks that it did not run itself
    are those of the visit before.
    """
    found, before = [None] * len(schedule.order), None
    for visit, position in enumerate(schedule.order):
        tree = visits[visit]
        backbone = {**tree["backbone"], "stem": stem}
        for stage, start in enumerate(schedule.start[visit]):
            if not start:
                continue
            name = f"stage{stage + 1}"
            earlier = before["backbone"][name]
            backbone[name] = {
                kind: jax.tree.map(
                    lambda new, old, rows=start - (kind == "rest"): np.concatenate(
                        [old[:rows], new[rows:]]
                    ),
                    own,
                    earlier[kind],
                )
                for kind, own in backbone[name].items()
            }
        before = found[position] = {**tree, "backbone": backbone}
    return found


@jax.jit
def _accumulate(moments, number):
    """Sums over the images of a batch of the first and second moments."""

    def layer(node):
        return {
            "mean": number * node["mean"],
            "var": number * (node["var"] + jnp.square(node["mean"])),
        }

    return jax.tree.map(layer, moments, is_leaf=_is_layer)


@jax.jit
def pool(totals: PyTree, images) -> PyTree:
    """Mean and variance from summed first and second moments (law of total variance)."""

    def layer(node):
        mean = node["mean"] / images
        return {"mean": mean, "var": jnp.maximum(node["var"] / images - jnp.square(mean), 0)}

    return jax.tree.map(layer, totals, is_leaf=_is_layer)


def _is_layer(node):
    return isinstance(node, dict) and set(node) == {"mean", "var"}
