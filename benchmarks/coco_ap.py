"""COCO AP from arrays in memory to the twelve numbers: ours over pycocotools.

    python benchmarks/coco_ap.py

5,000 images with 36,000 objects of 80 classes, some of them crowds, and 100 detections an image.
Most detections are near an object, and the higher their score the more often. Both sides get the
same detections in the form that each of them wants; what is timed is pycocotools' evaluate and
accumulate, and ours from matching to numbers, its compilation left out. Targets: 20 times faster
for one detector; nine at once in less than five times the time of one.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import common
import jax
import numpy as np
from absl import app, flags

from crnas_jax.evaluation.average_precision import (
    METRICS,
    MatchTable,
    map_in_threads,
    match_tables,
)
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.evaluation.matching import GroundTruth

_IMAGES = flags.DEFINE_integer("images", 5000, "Number of images.")
_OBJECTS = flags.DEFINE_integer("objects", 36000, "Number of objects in all images.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of ours; the median counts.")


def main(_):
    coco, detections = problem(_IMAGES.value, _OBJECTS.value)
    image_ids = [image["id"] for image in coco["images"]]
    ground_truth = GroundTruth(coco)
    repeated = {name: np.repeat(leaf, 9, 0) for name, leaf in detections.items()}

    def ours(detections):
        tables = match_tables(ground_truth, detections, image_ids)
        return map_in_threads(MatchTable.metrics, tables)

    (metrics,) = ours(detections)
    functions = {"1": lambda: ours(detections), "9": lambda: ours(repeated)}
    seconds = common.medians(functions, _REPEATS.value)

    run = CocoEvaluator(coco).prepare(results(coco, detections), image_ids)
    start = time.perf_counter()
    run.evaluate()
    run.accumulate()
    seconds["pycocotools"] = time.perf_counter() - start
    run.summarize()
    reference = dict(zip(METRICS, run.stats, strict=True))
    common.report(
        "coco_ap",
        {
            "images": _IMAGES.value,
            "objects": _OBJECTS.value,
            "detections": int(detections["valid"].sum()),
            "ratios": {
                "pycocotools over ours": seconds["pycocotools"] / seconds["1"],
                "nine detectors over one": seconds["9"] / seconds["1"],
            },
            "greatest difference of the twelve numbers": max(
                abs(reference[name] - metrics[name]) for name in METRICS
            ),
            "AP": metrics["AP"],
            "seconds": seconds,
        },
    )


def problem(
    num_images: int, num_objects: int, num_classes: int = 80, num_detections: int = 100
) -> tuple[dict, dict[str, np.ndarray]]:
    """Draw objects and the detections of one detector near them; the same at every call.

    Args:
      num_images: number of images, 640 x 640 pixels.
      num_objects: number of objects in all images.
      num_classes: number of classes.
      num_detections: number of detections in an image.

    Returns:
      The content of an annotation file; and detections as `match_tables` takes them, `boxes`
      float32 [1, images, detections, 4] and so on.
    """
    rng = np.random.default_rng(0)
    image_of = np.sort(rng.integers(num_images, size=num_objects))
    side = np.exp(rng.uniform(np.log(8), np.log(300), (num_objects, 2)))
    corner = rng.uniform(0, 1, (num_objects, 2)) * (640 - side)
    label = np.minimum(rng.geometric(0.08, num_objects), num_classes)
    annotations = [
        {
            "id": index + 1,
            "image_id": int(image_of[index]) + 1,
            "category_id": int(label[index]),
            "bbox": [float(value) for value in (*corner[index], *side[index])],
            "area": float(0.7 * side[index].prod()),
            "iscrowd": int(index % 90 == 0),
        }
        for index in range(num_objects)
    ]
    shape = (num_images, num_detections)
    detections = {
        "boxes": np.zeros((*shape, 4), np.float32),
        "scores": np.sort(rng.uniform(0.01, 1, shape).astype(np.float32), 1)[:, ::-1],
        "labels": np.minimum(rng.geometric(0.08, shape), num_classes).astype(np.int32),
        "valid": np.ones(shape, bool),
    }
    starts = np.searchsorted(image_of, np.arange(num_images + 1))
    for image in range(num_images):
        count = starts[image + 1] - starts[image]
        is_near = rng.uniform(size=num_detections) < detections["scores"][image] * (count > 0)
        target = starts[image] + rng.integers(max(count, 1), size=num_detections)
        target = np.minimum(target, num_objects - 1)
        noise = rng.normal(0, 0.12, (num_detections, 4)) * np.tile(side[target], 2)
        near_boxes = np.concatenate([corner[target], corner[target] + side[target]], 1) + noise
        random_corner = rng.uniform(0, 500, (num_detections, 2))
        random_side = rng.uniform(8, 140, (num_detections, 2))
        random_boxes = np.concatenate([random_corner, random_corner + random_side], 1)
        boxes = np.where(is_near[:, None], near_boxes, random_boxes)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        detections["boxes"][image] = boxes
        labels = detections["labels"][image]
        detections["labels"][image] = np.where(is_near, label[target], labels)
    coco = {
        "images": [{"id": index + 1, "height": 640, "width": 640} for index in range(num_images)],
        "categories": [{"id": index + 1, "name": str(index + 1)} for index in range(num_classes)],
        "annotations": annotations,
    }
    return coco, {name: leaf[None] for name, leaf in detections.items()}


def results(coco: dict, detections: dict[str, np.ndarray]) -> list[dict]:
    """Return the first detector's detections in COCO's result format."""
    rows = []
    for index, image in enumerate(coco["images"]):
        parts = (detections[name][0, index].tolist() for name in ("boxes", "scores", "labels"))
        for (x0, y0, x1, y1), score, label in zip(*parts, strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            rows.append(
                {"image_id": image["id"], "category_id": label, "bbox": box, "score": score}
            )
    return rows


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    app.run(main)
