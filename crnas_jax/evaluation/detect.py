"""Runs a trained network over a split."""

import jax
import numpy as np

from crnas_jax import interruption
from crnas_jax.data import loader
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.coco import compact, to_results
from crnas_jax.models.build import Detector
from crnas_jax.training.mesh import make_mesh, put_batch, replicated


def detect(
    detector: Detector,
    variables,
    source,
    size: ImageSize,
    batch_size: int,
    devices: int | None = None,
) -> list[dict]:
    """Detections of a stand-alone detector on every image of `source`, in COCO's result format."""
    mesh = make_mesh(batch_size, devices)
    run = jax.jit(
        lambda variables, batch: detector.apply(variables, batch, None),
        out_shardings=replicated(mesh),
    )
    variables = jax.device_put(variables, replicated(mesh))
    plan = loader.Plan(source.sizes, batch_size, seed=None)
    results = []
    for batch in loader.batches(source, plan, DetectionRows(size)):
        found = jax.tree.map(np.asarray, run(variables, put_batch(mesh, batch)))
        results += to_results(compact(found, batch), source.category_ids)
        interruption.stop_if_requested("the evaluation is done again from its beginning")
    return results
