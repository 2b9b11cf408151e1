"""Detections in COCO's result format: read from files, and as arrays."""

import collections
import itertools
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from crnas_jax.data import masks
from crnas_jax.data.source import DetectionSource
from crnas_jax.errors import UserError
from crnas_jax.runtime.files import read_json

_REMEDY = "give a list of {image_id, category_id, bbox, score}, COCO's result format"


def read_results(
    path: str | os.PathLike, source: DetectionSource, with_masks: bool = False
) -> tuple[list[dict], int]:
    """Read detections on the images of a split.

    Args:
      path: json file: a list in COCO's result format, or an object that holds it as `annotations`,
        as `predict` writes it. In the latter, images are found by file name, and images of other
        splits are left out.
      source: the split.
      with_masks: whether each has a `segmentation` too.

    Returns:
      The detections in COCO's result format, and how many were left out.

    Raises:
      UserError: the file cannot be read, no image of it belongs to the split, an entry lacks a
        field, names an image or category that the split does not have, or has numbers that are
        not finite.
    """
    path = pathlib.Path(path)
    content = read_json(path, _REMEDY)
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(path, "json", "no list of detections", _REMEDY)
    image_ids = _image_ids(path, content, source) if isinstance(content, dict) else None
    sizes = dict(zip(source.image_ids.tolist(), source.sizes.tolist(), strict=True))
    results, num_left_out = [], 0
    for index, entry in enumerate(entries):
        where = f"[{index}]"
        if not isinstance(entry, dict):
            raise UserError(path, where, "is no object", _REMEDY)
        image = entry.get("image_id")
        if image_ids is not None and image in image_ids:
            image = image_ids[image]
            if image is None:
                num_left_out += 1
                continue
        elif image_ids is not None:
            problem = f"{image!r} is no image of the file"
            raise UserError(path, f"{where}.image_id", problem, _REMEDY)
        for field, value, known in (
            ("image_id", image, sizes),
            ("category_id", entry.get("category_id"), source.category_ids),
        ):
            if type(value) is not int or value not in known:
                problem = f"{value!r} is none of the annotations' (whole numbers)"
                raise UserError(path, f"{where}.{field}", problem, "give detections of this split")
        result = {"image_id": image, "category_id": entry["category_id"]}
        result["bbox"] = _numbers(path, f"{where}.bbox", entry.get("bbox"), 4)
        (result["score"],) = _numbers(path, f"{where}.score", [entry.get("score")], 1)
        if with_masks:
            result["segmentation"] = masks.validated(entry.get("segmentation"), *sizes[image])
            if result["segmentation"] is None:
                raise UserError(path, f"{where}.segmentation", "no mask of its image", _REMEDY)
        results.append(result)
    return results, num_left_out


def detections_from_results(
    results: list[dict], category_ids: Sequence[int], image_ids
) -> dict[str, np.ndarray]:
    """Convert COCO results of one detector to the arrays that `match_tables` takes.

    Args:
      results: detections in COCO's result format.
      category_ids: category ids of the labels 1..C.
      image_ids: ids of the images, [images].

    Returns:
      `bbox` float64 [1, images, n, 4], (x, y, width, height); `scores` float64, `labels` int32 and
      `valid` bool, [1, images, n]; best first.
    """
    row_of_image = {int(image): row for row, image in enumerate(image_ids)}
    label_of_category = {category: label for label, category in enumerate(category_ids, 1)}
    by_image: list[list[dict]] = [[] for _ in image_ids]
    for result in results:
        by_image[row_of_image[result["image_id"]]].append(result)
    shape = (1, len(image_ids), max(map(len, by_image), default=0) or 1)
    detections = {
        "bbox": np.zeros((*shape, 4)),
        "scores": np.zeros(shape),
        "labels": np.zeros(shape, np.int32),
        "valid": np.zeros(shape, bool),
    }
    for row, image_results in enumerate(by_image):
        best_first = sorted(image_results, key=lambda result: -result["score"])
        for place, result in enumerate(best_first):
            detections["bbox"][0, row, place] = result["bbox"]
            detections["scores"][0, row, place] = result["score"]
            detections["labels"][0, row, place] = label_of_category[result["category_id"]]
            detections["valid"][0, row, place] = True
    return detections


def _image_ids(path, content, source, may_miss=False):
    """Return the split's ids of the images in a file of `predict`, by the file's ids.

    Their paths begin elsewhere: the image with the longest common end is meant.
    """
    by_name = collections.defaultdict(list)
    for image in source.coco["images"]:
        parts = pathlib.PurePosixPath(image["file_name"]).parts
        by_name[parts[-1]].append((parts, image["id"]))
    found = {}
    try:
        for image in content["images"]:
            parts = pathlib.Path(image["file_name"]).parts
            ends = [(_common_end(parts, p), i) for p, i in by_name[parts[-1]]]
            longest = [i for length, i in ends if length == max(ends)[0]]
            if len(longest) > 1:
                problem = f"{image['file_name']} may be each of the images {longest[:5]}"
                raise UserError(path, "images", problem, "give image_id in COCO's result format")
            found[image["id"]] = longest[0] if longest else None
        if found and not may_miss and not any(image is not None for image in found.values()):
            problem = f"none of its images, such as {image['file_name']}, is in the annotations"
            raise UserError(path, "images", problem, "give detections of this split")
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(path, "images", f"not as predict writes them: {error}", _REMEDY) from error
    return found


def annotations_of(
    source: DetectionSource, path: str | os.PathLike, files: Sequence[pathlib.Path]
) -> dict[pathlib.Path, list[dict] | None]:
    """Return by file the annotations of the image with its name; None where there is none.

    Args:
      source: the split.
      path: its annotation file, for messages.
      files: image files.

    Raises:
      UserError: several images of the split may be meant.
    """
    content = {"images": [{"id": row, "file_name": str(file)} for row, file in enumerate(files)]}
    image_ids = _image_ids(path, content, source, may_miss=True)
    by_image = collections.defaultdict(list)
    for entry in source.coco["annotations"]:
        by_image[entry["image_id"]].append(entry)
    return {
        file: None if image_ids[row] is None else by_image[image_ids[row]]
        for row, file in enumerate(files)
    }


def _common_end(parts, others):
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _numbers(path, place, values, count):
    if (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    ):
        return [float(value) for value in values]
    raise UserError(path, place, f"{str(values)[:60]}", f"give {count} finite number(s)")
