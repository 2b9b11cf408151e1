"""COCO metrics of boxes and masks by pycocotools, AP per class, a paired bootstrap of detectors."""

import contextlib
import copy
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from crnas_jax.data import masks

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


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
            run.evaluate()
            run.accumulate()
            run.summarize()
        return CocoResult(run, self.class_names)


class CocoResult:
    """The numbers of one evaluation.

    Attributes:
      metrics: the twelve of `METRICS`, fractions; NaN where nothing was to be found.
      per_class: AP by class name.
    """

    def __init__(self, run: COCOeval, class_names: list[str]):
        self._run = run
        self.metrics = {
            name: float(value) if value >= 0 else float("nan")
            for name, value in zip(METRICS, run.stats, strict=True)
        }
        precision = run.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes
        self.per_class = {}
        for index, name in enumerate(class_names):
            values = precision[:, :, index]
            self.per_class[name] = float(values.mean()) if (values >= 0).all() else float("nan")

    def match_table(self) -> dict:
        """Matches at all sizes and 100 detections by class: what a bootstrap needs."""
        run = self._run
        images = len(run.params.imgIds)
        per_class = []
        cells = np.array(run.evalImgs, dtype=object).reshape(
            len(run.params.catIds), len(run.params.areaRng), images
        )
        for cells_of_class in cells[:, 0]:
            image, scores, matched, ignored, truths = [], [], [], [], np.zeros(images)
            for index, cell in enumerate(cells_of_class):
                if cell is None:
                    continue
                image.append(np.full(len(cell["dtScores"]), index))
                scores.append(cell["dtScores"])
                matched.append(cell["dtMatches"] > 0)
                ignored.append(cell["dtIgnore"] > 0)
                truths[index] = np.sum(np.asarray(cell["gtIgnore"]) == 0)
            if not image:
                continue
            order = np.argsort(-np.concatenate(scores), kind="mergesort")
            per_class.append(
                {
                    "image": np.concatenate(image)[order].astype(int),
                    "matched": np.concatenate(matched, 1)[:, order],
                    "ignored": np.concatenate(ignored, 1)[:, order].astype(bool),
                    "truths": truths,
                }
            )
        return {"images": images, "classes": per_class, "recalls": run.params.recThrs}


def weighted_ap(table: dict, weights: np.ndarray) -> float:
    """AP when image i is counted `weights[i]` times; with ones, pycocotools' AP."""
    values = []
    for rows in table["classes"]:
        truths = float(rows["truths"] @ weights)
        if truths == 0:
            continue
        weight = weights[rows["image"]]
        for matched, ignored in zip(rows["matched"], rows["ignored"], strict=True):
            true = np.cumsum(weight * (matched & ~ignored))
            false = np.cumsum(weight * (~matched & ~ignored))
            recall = true / truths
            precision = true / np.maximum(true + false, np.spacing(1))
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            values.append(envelope[np.searchsorted(recall, table["recalls"], side="left")].mean())
    return float(np.mean(values)) if values else float("nan")


def paired_bootstrap(
    first: CocoResult, second: CocoResult, replicates: int = 500, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """AP of `second` minus AP of `first`, and its 95 % interval over resampled images.

    Both see the same resampled images, so that what an image does to both cancels. The interval is
    stretched to hold the difference itself where rounding would leave it outside.
    """
    tables = first.match_table(), second.match_table()
    rng, images = np.random.default_rng(seed), tables[0]["images"]
    difference = second.metrics["AP"] - first.metrics["AP"]
    draws = []
    for _ in range(replicates):
        weights = np.bincount(rng.integers(images, size=images), minlength=images).astype(float)
        draws.append(weighted_ap(tables[1], weights) - weighted_ap(tables[0], weights))
    draws = [draw for draw in draws if np.isfinite(draw)] or [-1.0, 1.0]  # nothing is known
    low, high = np.percentile(draws, [2.5, 97.5])
    return difference, (min(float(low), difference), max(float(high), difference))
