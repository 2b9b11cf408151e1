"""COCO metrics of boxes and masks by pycocotools, and AP per class."""

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_jax.data import masks
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import METRICS


def compact_detections(
    detections: dict[str, np.ndarray], batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the real detections of one batch in pixels of the original images.

    Args:
      detections: `boxes` [B, n, 4] in xyxy, canvas pixels; `scores`, `labels`, `valid` [B, n]; and
        `masks` [B, n, M, M] if the detector has masks.
      batch: batch that the detector ran on; its padding images are left out.

    Returns:
      `image_id` int64 [k], `boxes` float32 [k, 4] xyxy, `scores` [k], `labels` [k]; with masks also
      `masks` [k, M, M] and `image_size` [k, 2], height and width of the original image.

    Raises:
      UserError: a score is not finite.
    """
    real = np.asarray(detections["valid"]) & (batch["weight"] > 0)[:, None]
    require_finite(np.asarray(detections["scores"])[real], "detector")
    boxes = np.asarray(detections["boxes"]) / batch["scale"][:, None, [1, 0, 1, 0]]
    image, _ = np.nonzero(real)
    compact = {
        "image_id": batch["image_id"][image],
        "boxes": boxes[real],
        "scores": np.asarray(detections["scores"])[real],
        "labels": np.asarray(detections["labels"])[real],
    }
    if "masks" in detections:
        compact["masks"] = np.asarray(detections["masks"])[real]
        compact["image_size"] = batch["original_size"][image]
    return compact


def require_finite(scores: np.ndarray, what: str) -> None:
    """Raise UserError about `what` unless all scores are finite."""
    if not np.isfinite(scores).all():
        remedy = "its weights or statistics are broken: train again, with a lower lr_per_image"
        raise UserError(what, "scores", "not finite", remedy)


def to_results(detections: dict[str, np.ndarray], category_ids: list[int]) -> list[dict]:
    """Convert compact detections to COCO's result format.

    Masks are pasted on the original image, cut at a probability of 0.5 and run-length coded.

    Args:
      detections: result of `compact_detections`.
      category_ids: category ids of the labels 1..C.
    """
    results = [
        {
            "image_id": image,
            "category_id": category_ids[label - 1],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for image, (x0, y0, x1, y1), label, score in zip(
            *(detections[name].tolist() for name in ("image_id", "boxes", "labels", "scores")),
            strict=True,
        )
    ]
    if "masks" in detections:
        names = ("masks", "boxes", "image_size")
        instances = zip(*(detections[name] for name in names), strict=True)
        for result, (mask, box, size) in zip(results, instances, strict=True):
            result["segmentation"] = masks.encode(masks.paste(mask, box, *size.tolist()) >= 0.5)
    return results


class CocoEvaluator:
    """Scores detections against one annotation file, on all images or on given ones.

    Attributes:
      class_names: names of the categories, in the order of category ids.
    """

    def __init__(self, annotations: dict, ignore_fields: tuple[str, ...] = ("iscrowd",)):
        """Read the content of an annotation file.

        Args:
          annotations: content of a COCO annotation file.
          ignore_fields: annotation fields that mark an object as ignored.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            self._ground_truth = COCO()
            # pycocotools writes into the entries, which sources may make only when asked for.
            self._ground_truth.dataset = {
                name: [dict(entry) for entry in annotations[name]]
                for name in ("images", "annotations", "categories")
            }
            for index, annotation in enumerate(self._ground_truth.dataset["annotations"], 1):
                # Files may count from 0, but in pycocotools the object id 0 means "no match".
                annotation["id"] = index
                annotation["iscrowd"] = int(any(annotation.get(field) for field in ignore_fields))
                annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
            self._ground_truth.createIndex()
        categories = self._ground_truth.cats
        self.class_names = [categories[category]["name"] for category in sorted(categories)]

    @classmethod
    def from_source(cls, source) -> "CocoEvaluator":
        """Read the annotations of one split of a data set."""
        return cls(source.coco, source.ignore_fields)

    def evaluate(self, results: list[dict], image_ids=None, iou_type: str = "bbox") -> "CocoResult":
        """Return the metrics of `results`.

        Args:
          results: detections in COCO's result format (see `to_results`).
          image_ids: ids of the images to evaluate; all when None.
          iou_type: `bbox` for the metrics of boxes, `segm` for the metrics of masks.
        """
        run = self.prepare(results, image_ids, iou_type)
        with contextlib.redirect_stdout(io.StringIO()):
            run.evaluate()
            run.accumulate()
            run.summarize()
        return CocoResult(run, self.class_names)

    def prepare(self, results: list[dict], image_ids=None, iou_type: str = "bbox") -> COCOeval:
        """Return pycocotools' evaluation before it runs; the arguments are those of `evaluate`."""
        with contextlib.redirect_stdout(io.StringIO()):
            results = copy.deepcopy(results)
            if iou_type == "segm":
                for result in results:
                    # With a box, pycocotools would use its area instead of the mask's.
                    result.pop("bbox", None)
            if results:
                detections = self._ground_truth.loadRes(results)
            else:
                detections = COCO()
                detections.dataset = {**self._ground_truth.dataset, "annotations": []}
                detections.createIndex()
            run = COCOeval(self._ground_truth, detections, iou_type)
        if image_ids is not None:
            run.params.imgIds = sorted(int(image) for image in image_ids)
        return run


class CocoResult:
    """Metrics of one evaluation.

    Attributes:
      metrics: the twelve `METRICS`, fractions; NaN where there are no objects to detect.
      per_class: AP by class name, fractions; NaN for classes without objects.
    """

    def __init__(self, run: COCOeval, class_names: list[str]):
        """Read the metrics of an evaluation that has been run and summarised.

        Args:
          run: pycocotools' evaluation.
          class_names: names of the categories, in the order of category ids.
        """
        self.metrics = {
            name: float(value) if value >= 0 else float("nan")
            for name, value in zip(METRICS, run.stats, strict=True)
        }
        precision = run.eval["precision"][:, :, :, 0, -1]  # [thresholds, recalls, classes]
        self.per_class = {}
        for index, name in enumerate(class_names):
            values = precision[:, :, index]
            self.per_class[name] = float(values.mean()) if (values >= 0).all() else float("nan")
