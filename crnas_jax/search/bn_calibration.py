"""Batch normalisation statistics of subnets, recomputed on training images.

The running averages of a supernet mix all paths; a subnet scored with them is not itself. The
statistics here are pooled in closed form over all images, between-batch variance included; an
exponential average would weigh the last few batches alone.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from crnas_jax.search.evaluator import SubnetEvaluator


def calibrate(
    evaluator: SubnetEvaluator, variables: PyTree, batches: Iterable, choices: list
) -> list[PyTree]:
    """Statistics of every subnet over the images of `batches`."""
    totals, images = None, 0.0
    for batch in batches:
        number = jnp.sum(batch["weight"] > 0).astype(jnp.float32)
        weighted = [
            _accumulate(moments, number) for moments in evaluator.moments(variables, batch, choices)
        ]
        totals = weighted if totals is None else jax.tree.map(jnp.add, totals, weighted)
        images += number
    return [pool(total, images) for total in totals]


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
