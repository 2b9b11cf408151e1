"""The peers' way of scoring a candidate, for `evaluator.py`: each one is a program of its own.

The network is built, its statistics are recalibrated, it is compiled, every image is read for it
alone, and pycocotools turns its detections into AP.
"""

import time

import jax
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.source import DetectionSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.coco import CocoEvaluator, compact_detections, to_results
from crnas_jax.models.build import Detector
from crnas_jax.models.layers import BN_COLLECT
from crnas_jax.parallel.mesh import make_mesh, put_batch


def peer_seconds(
    detector: Detector,
    variables: PyTree,
    code: tuple[int, ...],
    train_source: DetectionSource,
    val_source: DetectionSource,
    size: ImageSize,
) -> dict[str, float]:
    """Measure the seconds of each part of scoring one candidate.

    Args:
      detector: detector on the supernet.
      variables: banks of the supernet.
      code: number of blocks in each stage of the candidate.
      train_source: images for recalibrated statistics.
      val_source: images to score on.
      size: resize rule.
    """
    start, seconds = time.perf_counter(), {}

    def lap(part):
        nonlocal start
        seconds[part], start = time.perf_counter() - start, time.perf_counter()

    spec, mesh, rows = detector.spec, make_mesh(16, 1), DetectionRows(size)
    network = Detector(spec.arch(code), detector.options)
    network_variables = jax.device_put(detector.extract(variables, spec.choice(code), code))

    @jax.jit
    def moments(variables, batch):
        return network.module.apply(
            variables, batch, None, BN_COLLECT, method="features", mutable=["batch_stats"]
        )[1]["batch_stats"]

    def batches(source):
        plan = loader.Plan(source.sizes, 16, None)
        for batch in loader.batches(source, plan, rows):
            yield batch, put_batch(mesh, batch)

    _, device_batch = next(batches(train_source))
    jax.block_until_ready(moments(network_variables, device_batch))
    lap("build, compile statistics")
    stats = network_variables["batch_stats"]
    for _, device_batch in batches(train_source):
        batch_stats = moments(network_variables, device_batch)
        stats = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch_stats)
    network_variables = jax.block_until_ready({**network_variables, "batch_stats": stats})
    lap("recalibrate")
    detect = jax.jit(lambda variables, batch: network.apply(variables, batch, None))
    _, device_batch = next(batches(val_source))
    jax.block_until_ready(detect(network_variables, device_batch))
    lap("compile")
    results = []
    for batch, device_batch in batches(val_source):
        detections = jax.device_get(detect(network_variables, device_batch))
        results += to_results(compact_detections(detections, batch), val_source.category_ids)
    CocoEvaluator.from_source(val_source).evaluate(results)
    lap("images")
    return seconds
