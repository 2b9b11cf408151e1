"""COCO metrics of boxes and masks by pycocotools, AP per class."""

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_jax.data import masks
from crnas_jax.evaluation.average_precision import METRICS


def compact(
    detections: dict[str, np.ndarray], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The real detections of one batch, in the pixels of the original images.

    Args:
      detections: `boxes` [B, n, 4] in canvas pixels, `scores`, `labels`, `valid` [B, n], and
        `masks` [B, n, M, M] of a detector that has them.
      batch: the contract's batch they belong to; padding images are left out.

    Returns:
      `image_id` int64 [k], `boxes` float32 [k, 4] xyxy, `scores` [k], `labels` [k]; with masks also
      `masks` [k, M, M] and `image_size` [k, 2], the originals' height and width.
    """
    real = np.asarray(detections["valid"]) & (batch["weight"] > 0)[:, None]
    boxes = np.asarray(detections["boxes"]) / batch["scale"][:, None, [1, 0, 1, 0]]
    image, _ = np.nonzero(real)
    found = {
        "image_id": batch["image_id"][image],
        "boxes": boxes[real],
        "scores": np.asarray(detections["scores"])[real],
        "labels": np.asarray(detections["labels"])[real],
    }
    if "masks" in detections:
        found["masks"] = np.asarray(detections["masks"])[real]
        found["image_size"] = batch["original_size"][image]
    return found


def to_results(found: dict[str, np.ndarray], category_ids: list[int]) -> list[dict]:
    """Compact detections in COCO's result format; `category_ids` are those of the labels 1..C.

    Masks are pasted on the original image, cut at a probability of 0.5 and run-length coded.
    """
    results = [
        {
            "image_id": image,
            "category_id": category_ids[label - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for image, (x0, y0, x1, y1), label, score in zip(
            *(found[name].tolist() for name in ("image_id", "boxes", "labels", "scores")),
            strict=True,
        )
    ]
    if "masks" in found:
        instances = zip(*(found[name] for name in ("masks", "boxes", "image_size")), strict=True)
        for result, (mask, box, size) in zip(results, instances, strict=True):
            result["segmentation"] = masks.encode(masks.paste(mask, box, *size.tolist()) >= 0.5)
    return results


class CocoEvaluator:
    """Scores detections against one annotation file, images restricted as asked.

    Attributes:
      class_names: name of every category, in the order of category ids.
    """

    def __init__(self, annotations: dict, set_apart: tuple[str, ...] = ("iscrowd",)):
        """Args: the content of the annotation file; fields that mark an object to be ignored."""
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth = COCO()
            self._truth.dataset = copy.deepcopy(annotations)
            for index, annotation in enumerate(self._truth.dataset["annotations"], 1):
                # pycocotools takes the ground truth id 0 for "no match": files may count from 0.
                annotation["id"] = index
                annotation["iscrowd"] = int(any(annotation.get(field) for field in set_apart))
                annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
            self._truth.createIndex()
        self.class_names = [
            self._truth.cats[category]["name"] for category in sorted(self._truth.cats)
        ]

    @classmethod
    def of(cls, source) -> "CocoEvaluator":
        """For a split of a data set."""
        return cls(source.coco, source.set_apart)

    def evaluate(self, results: list[dict], image_ids=None, iou_type: str = "bbox") -> "CocoResult":
        """The metrics of `results` (see `to_results`).

        Args:
          results: in COCO's format.
          image_ids: which images to count; all when None.
          iou_type: `bbox`, or `segm` for those of masks.
        """
        run = self.prepare(results, image_ids, iou_type)
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
            run.summarize()
        return CocoResult(run, self.class_names)

    def prepare(self, results: list[dict], image_ids=None, iou_type: str = "bbox") -> COCOeval:
        """pycocotools' evaluation, ready to be run; arguments as `evaluate`."""
        with contextlib.redirect_stdout(io.StringIO()):
            results = copy.deepcopy(results)
            if iou_type == "segm":
                for result in results:
                    # Else pycocotools would take the box's area for the object's.
                    result.pop("bbox", None)
            if results:
                detections = self._truth.loadRes(results)
            else:
                detections = COCO()
                detections.dataset = {**self._truth.dataset, "annotations": []}
                detections.createIndex()
            run = COCOeval(self._truth, detections, iou_type)
        if image_ids is not None:
            run.params.imgIds = sorted(int(image) for image in image_ids)
        return run


class CocoResult:
    """The numbers of one evaluation.

    Attributes:
      metrics: the twelve of `METRICS`, fractions; NaN where nothing was to be found.
      per_class: AP by class name.
    """

    def __init__(self, run: COCOeval, class_names: list[str]):
        self.metrics = {
            name: float(value) if value >= 0 else float("nan")
            for name, value in zip(METRICS, run.stats, strict=True)
        }
        precision = run.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
        self.per_class = {}
        for index, name in enumerate(class_names):
            values = precision[:, :, index]
            self.per_class[name] = float(values.mean()) if (values >= 0).all() else float("nan")
