"""A trained network over a whole split, and the metrics of its detections."""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from crnas_jax.data import loader
from crnas_jax.data.source import ClassificationSource, DetectionSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.coco import CocoEvaluator, compact_detections, to_results
from crnas_jax.evaluation.voc import voc_ap
from crnas_jax.models.build import Detector, Model
from crnas_jax.parallel import hosts
from crnas_jax.parallel.mesh import make_mesh, put_batch, replicated
from crnas_jax.runtime import interruption
from crnas_jax.runtime.progress import Progress


def run_on_split(
    function: Callable,
    model: Model,
    variables: PyTree,
    source: DetectionSource | ClassificationSource,
    to_row: Callable,
    batch_size: int,
    num_devices: int | None = None,
    choice_of: Callable[[int], PyTree] = lambda index: None,
    name: str = "evaluation",
) -> Iterator[tuple[dict[str, np.ndarray], PyTree]]:
    """Yield the function's result for every mini-batch of a split, in order.

    With it comes of the mini-batch what results are assigned to images by (`loader.all_rows`); all
    NumPy, on every host alike.

    Args:
      function: function of (model, variables, batch, choice), one of a module: it is compiled once
        for equal models, whatever their variables and the split.
      model: its first argument.
      variables: its second argument.
      source: the split.
      to_row: function from a record to a row of a batch (`data.loader.batches`).
      batch_size: images in a mini-batch.
      num_devices: number of devices; all when None.
      choice_of: function from a mini-batch's index to the path to run on it.
      name: what is shown as progress.

    Raises:
      Stopped: a stop was requested.
    """
    mesh = make_mesh(batch_size, num_devices)
    run = compiled(function, model, mesh)
    variables = hosts.put(variables, replicated(mesh))
    plan = loader.Plan(source.sizes, batch_size, seed=None)
    progress = Progress(name, len(plan), unit="mini-batch")
    for index, batch in enumerate(loader.batches(source, plan, to_row)):
        result = run(variables, put_batch(mesh, batch), choice_of(index))
        yield loader.all_rows(batch), hosts.fetch(result)
        progress.update(index + 1)
        interruption.stop_if_requested("the evaluation starts again from its beginning")
    progress.close()


# Detections and statistics of the three networks of a last rung fit; programs take memory.
@functools.lru_cache(maxsize=8)
def compiled(function: Callable, model: Model, mesh: Mesh) -> Callable:
    """Return a jitted function of (variables, batch, choice), the same for equal arguments.

    Args:
      function: see `run_on_split`.
      model: see `run_on_split`.
      mesh: the results are replicated over it.
    """
    return hosts.jit(functools.partial(function, model), out_shardings=replicated(mesh))


def predict_split(
    detector: Detector,
    variables: PyTree,
    source: DetectionSource,
    size: ImageSize,
    batch_size: int,
    num_devices: int | None = None,
    name: str = "evaluation",
) -> list[dict]:
    """Return a stand-alone detector's detections on every image, in COCO's result format.

    Args:
      detector: the detector.
      variables: its weights.
      source: the split.
      size: resize rule.
      batch_size: images in a mini-batch.
      num_devices: number of devices; all when None.
      name: what is shown as progress.
    """
    rows, devices = DetectionRows(size), num_devices
    batches = run_on_split(
        Detector.apply, detector, variables, source, rows, batch_size, devices, name=name
    )
    return [
        result
        for batch, detections in batches
        for result in to_results(compact_detections(detections, batch), source.category_ids)
    ]


def split_metrics(source: DetectionSource, results: list[dict], with_masks: bool = False) -> dict:
    """Return the metrics that a split asks for; None where there was nothing to detect.

    These are the twelve COCO metrics and `per_class` AP of boxes; with masks also `segm`, the same
    of masks. A source with "voc" among its `metrics` gets `VOC07_AP50` (11 points) and `VOC_AP50`
    (area) by the rules of VOC's tools, and both by class.

    Args:
      source: the split.
      results: see `predict_split`.
      with_masks: whether `results` have a `segmentation`.
    """
    evaluator = CocoEvaluator.from_source(source)
    metrics = _to_json(evaluator.evaluate(results))
    if with_masks:
        metrics["segm"] = _to_json(evaluator.evaluate(results, iou_type="segm"))
    if "voc" in source.metrics:
        for name, eleven_point in (("VOC07_AP50", True), ("VOC_AP50", False)):
            voc = voc_ap(source.coco, results, eleven_point=eleven_point)
            metrics[name] = _finite_or_none(voc["AP"])
            metrics[f"{name}_per_class"] = {
                label: _finite_or_none(ap) for label, ap in voc["per_class"].items()
            }
    return metrics


def _to_json(result):
    per_class = {name: _finite_or_none(value) for name, value in result.per_class.items()}
    return {
        **{name: _finite_or_none(value) for name, value in result.metrics.items()},
        "per_class": per_class,
    }


def _finite_or_none(value):
    return value if math.isfinite(value) else None
