"""Runs a trained network over a split, and measures what it found."""

import math

from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.data.voc import VocSource
from crnas_jax.evaluation.coco import CocoEvaluator, compact, to_results
from crnas_jax.evaluation.predict_split import over_split
from crnas_jax.evaluation.voc import voc_ap
from crnas_jax.models.build import Detector


def detect(
    detector: Detector,
    variables,
    source,
    size: ImageSize,
    batch_size: int,
    devices: int | None = None,
) -> list[dict]:
    """Detections of a stand-alone detector on every image of `source`, in COCO's result format."""
    batches = over_split(
        detector.apply, variables, source, DetectionRows(size), batch_size, devices
    )
    return [
        result
        for batch, found in batches
        for result in to_results(compact(found, batch), source.category_ids)
    ]


def metrics(source, results: list[dict], with_masks: bool = False) -> dict:
    """The twelve COCO metrics and `per_class` AP of boxes; None where nothing was to be found.

    With masks also `segm`, the same of masks. On PASCAL VOC also `VOC07_AP50` (11 points) and
    `VOC_AP50` (area), by the rules of VOC's own tools, and the same by class.

    Args:
      source: the split.
      results: see `detect`.
      with_masks: whether `results` have a `segmentation`.
    """
    evaluator = CocoEvaluator.of(source)
    found = _numbers(evaluator.evaluate(results))
    if with_masks:
        found["segm"] = _numbers(evaluator.evaluate(results, iou_type="segm"))
    if isinstance(source, VocSource):
        for name, eleven_point in (("VOC07_AP50", True), ("VOC_AP50", False)):
            voc = voc_ap(source.coco, results, eleven_point=eleven_point)
            found[name] = _or_none(voc["AP"])
            found[f"{name}_per_class"] = {
                label: _or_none(ap) for label, ap in voc["per_class"].items()
            }
    return found


def _numbers(result):
    per_class = {name: _or_none(value) for name, value in result.per_class.items()}
    return {
        **{name: _or_none(value) for name, value in result.metrics.items()},
        "per_class": per_class,
    }


def _or_none(value):
    return value if math.isfinite(value) else None
