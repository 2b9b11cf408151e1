"""Runs a trained network over a split."""

from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.evaluation.coco import compact, to_results
from crnas_jax.evaluation.split import over_split
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
