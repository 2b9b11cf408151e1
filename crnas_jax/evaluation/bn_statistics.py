"""Batch normalisation statistics of a trained network, recomputed on training images.

Running averages from small mini-batches are noisy, weigh the last mini-batches most, and leave out
how the means of mini-batches vary. The statistics here are pooled in closed form over all images,
between-batch variance included.
"""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.source import DetectionSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.predict_split import compiled
from crnas_jax.models.build import Detector
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import make_mesh, put_batch, replicated
from crnas_jax.runtime import interruption
from crnas_jax.runtime.progress import Progress


def recalibrate(
    model: Detector,
    variables: PyTree,
    source: DetectionSource,
    size: ImageSize,
    batch_size: int,
    num_images: int,
    seed: int = 0,
    num_devices: int | None = None,
) -> PyTree:
    """Return the variables with statistics pooled over training images, NumPy.

    Frozen layers keep their statistics, and all parameters their values, bit for bit.

    Args:
      model: a stand-alone detector.
      variables: its weights.
      source: the training images; they are not augmented.
      size: resize rule.
      batch_size: images in a mini-batch, which is normalised by its own statistics.
      num_images: number of images, rounded down to whole mini-batches, but at least one.
      seed: seed of the images' order: for equal arguments the images are those that
        `search.supernet.scorer` recalibrates subnets on.
      num_devices: number of devices; all when None.

    Raises:
      Stopped: a stop was requested.
    """
    mesh = make_mesh(batch_size, num_devices)
    collect = compiled(_statistics, model, mesh)
    on_devices = hosts.put(variables, replicated(mesh))
    plan = loader.Plan(source.sizes, batch_size, seed)
    num_batches = plan.num_batches(num_images)
    progress = Progress("statistics", num_batches, unit="mini-batch")
    pooled, num_pooled = None, 0
    batches = loader.batches(source, plan, DetectionRows(size), stop=num_batches)
    for index, batch in enumerate(batches):
        device_batch = put_batch(mesh, batch)
        batch_images = count_images(device_batch["weight"])
        moments = collect(on_devices, device_batch, None)
        pooled = moments if pooled is None else merge(pooled, num_pooled, moments, batch_images)
        num_pooled += batch_images
        # Without waiting, mini-batches would pile up on the devices and progress run ahead.
        jax.block_until_ready(pooled)
        progress.update(index + 1)
        interruption.stop_if_requested("the statistics start again from their beginning")
    progress.close()
    return {**hosts.fetch(variables), "batch_stats": hosts.fetch(pooled)}


def _statistics(model, variables, batch, choice):
    return model.statistics(variables, batch, choice)


@hosts.jit
def count_images(weight: jax.Array) -> jax.Array:
    """Return how many images of a mini-batch count, float32, given their weights [images]."""
    return (weight > 0).sum().astype(jnp.float32)


@hosts.jit
def merge(pooled: PyTree, num_images, moments: PyTree, batch_images) -> PyTree:
    """Return mean and variance over two sets of images from those of each.

    Sums of squares would cancel where a mean is many deviations from 0; differences of means do not
    (Chan, Golub and LeVeque 1979).

    Args:
      pooled: a tree of {"mean", "var"}, arrays of one value for each channel, of the first set.
      num_images: number of images in it.
      moments: the same of the second set.
      batch_images: number of images in that.
    """
    share = batch_images / jnp.maximum(num_images + batch_images, 1)

    def layer(old, new):
        difference = new["mean"] - old["mean"]
        mean = old["mean"] + share * difference
        var = (1 - share) * old["var"] + share * new["var"]
        merged = {"mean": mean, "var": var + share * (1 - share) * jnp.square(difference)}
        # Rounding must not move the statistics of frozen layers, which every set brings alike.
        same = (new["mean"] == old["mean"]) & (new["var"] == old["var"])
        return {name: jnp.where(same, old[name], merged[name]) for name in merged}

    return jax.tree.map(layer, pooled, moments, is_leaf=_is_layer)


def _is_layer(node):
    return isinstance(node, dict) and set(node) == {"mean", "var"}
