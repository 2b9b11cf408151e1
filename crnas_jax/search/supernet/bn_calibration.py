"""Batch normalisation statistics of subnets, recomputed on training images.

The running averages of a supernet mix all paths; scored with them, a subnet is not itself. The
statistics here are pooled in closed form over all images, between-batch variance included; an
exponential average would weigh the last few batches alone.
"""

from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.evaluation.bn_statistics import count_images, merge
from crnas_jax.models.supernet.prefix_tree import Schedule
from crnas_jax.parallel import hosts
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
    pooled, num_images = None, 0
    for batch in batches:
        batch_images = count_images(batch["weight"])
        moments = evaluator.moments(variables, batch, choices)
        pooled = moments if pooled is None else merge(pooled, num_images, moments, batch_images)
        num_images += batch_images
    shared, chunks = hosts.fetch(pooled)
    visits = [
        jax.tree.map(lambda leaf, i=index: leaf[i], chunk)
        for chunk in chunks
        for index in range(len(jax.tree.leaves(chunk)[0]))
    ]
    return _complete(evaluator.schedule(choices), visits, shared)


def _complete(schedule: Schedule, visits: list[PyTree], shared: PyTree) -> list[PyTree]:
    """Return all statistics of each subnet; blocks it did not run come from the visit before."""
    complete, previous = [None] * len(schedule.order), None
    for visit, position in enumerate(schedule.order):
        tree = visits[visit]
        backbone = {**tree["backbone"], **shared}
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
