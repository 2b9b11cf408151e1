"""COCO metrics: known answers, and detections converted to pixels of the original images."""

import copy
import json

import numpy as np
import pytest

from crnas_jax.evaluation.average_precision import METRICS
from crnas_jax.evaluation.coco import CocoEvaluator, compact_detections, to_results

# Two images with one object each, a third without objects, and a class without objects.
COCO = {
    "images": [{"id": i, "height": 50, "width": 50} for i in (1, 2, 3)],
    "categories": [{"id": 5, "name": "five"}, {"id": 6, "name": "six"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 5,
            "bbox": [0, 0, 10, 10],
            "area": 100,
            "iscrowd": 0,
        },
        {
            "id": 2,
            "image_id": 2,
            "category_id": 5,
            "bbox": [5, 5, 20, 20],
            "area": 400,
            "iscrowd": 0,
        },
    ],
}
PERFECT_RESULTS = [
    {"image_id": 1, "category_id": 5, "bbox": [0, 0, 10, 10], "score": 0.9},
    {"image_id": 2, "category_id": 5, "bbox": [5, 5, 20, 20], "score": 0.8},
]


@pytest.fixture(scope="module")
def fixture(shared_data):
    folder = shared_data / "coco_eval_fixtures"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def _known_case(fixture, name):
    """Return annotations, results and the twelve expected metrics."""
    case = next(entry for entry in fixture["expected"]["cases"] if entry["name"] == name)
    files = (case[key].removesuffix(".json") for key in ("gt", "dt"))
    return *(fixture[file] for file in files), case["expected"]


@pytest.mark.parametrize("name", ["cocoapi_bbox", "nocrowd_bboxarea_bbox"])
def test_known_answers(fixture, name):
    annotations, results, expected = _known_case(fixture, name)
    result = CocoEvaluator(annotations).evaluate(results)
    assert tuple(result.metrics) == METRICS
    np.testing.assert_allclose(list(result.metrics.values()), expected, atol=1e-9)
    assert len(result.per_class) == 80


def test_masks_have_known_answers(fixture):
    annotations, results, expected = _known_case(fixture, "cocoapi_segm")
    result = CocoEvaluator(annotations).evaluate(results, iou_type="segm")
    np.testing.assert_allclose(list(result.metrics.values()), expected, atol=1e-9)
    # A detector returns boxes and masks, and the area is the mask's all the same.
    with_boxes = [{**entry, "bbox": [0, 0, 500, 500]} for entry in results]
    result_with_boxes = CocoEvaluator(annotations).evaluate(with_boxes, iou_type="segm")
    assert result_with_boxes.metrics == result.metrics


def test_objects_with_an_ignore_field_are_ignored():
    coco = copy.deepcopy(COCO)
    coco["annotations"][0]["difficult"] = 1
    ap = [
        CocoEvaluator(coco, fields).evaluate(PERFECT_RESULTS[1:]).metrics["AP"]
        for fields in (("iscrowd",), ("iscrowd", "difficult"))
    ]
    assert ap == pytest.approx([51 / 101, 1.0])


def test_perfect_half_and_no_detections():
    evaluator = CocoEvaluator(COCO)
    result = evaluator.evaluate(PERFECT_RESULTS)
    assert result.metrics["AP"] == pytest.approx(1)
    assert np.isnan(result.metrics["APl"])
    assert result.per_class["five"] == pytest.approx(1)
    assert np.isnan(result.per_class["six"])
    half = PERFECT_RESULTS[:1]
    assert evaluator.evaluate(half).metrics["AP"] == pytest.approx(51 / 101)
    assert evaluator.evaluate([]).metrics["AP"] == 0
    assert evaluator.evaluate(half, image_ids=[1, 3]).metrics["AP"] == pytest.approx(1)


def test_annotation_ids_may_count_from_zero():
    annotations = [
        {
            "id": i,
            "image_id": i + 1,
            "category_id": 1,
            "bbox": [0, 0, 9, 9],
            "area": 81,
            "iscrowd": 0,
        }
        for i in range(2)
    ]
    images = [{"id": i, "height": 50, "width": 50} for i in (1, 2)]
    coco = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": annotations}
    results = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.9} for i in (1, 2)
    ]
    assert CocoEvaluator(coco).evaluate(results).metrics["AP"] == pytest.approx(1)


def test_results_are_in_original_pixels_and_padding_is_left_out():
    detections = {
        "boxes": np.array([[[10, 20, 30, 60]], [[0, 0, 1, 1]]], np.float32),
        "scores": np.array([[0.5], [0.9]], np.float32),
        "labels": np.array([[2], [1]]),
        "valid": np.array([[True], [True]]),
    }
    batch = {
        "scale": np.array([[2, 0.5], [1, 1]], np.float32),
        "image_id": np.array([2**40, 1]),
        "weight": np.array([1, 0], np.float32),
    }
    assert to_results(compact_detections(detections, batch), [7, 9]) == [
        {"image_id": 2**40, "category_id": 9, "bbox": [20.0, 10.0, 40.0, 20.0], "score": 0.5}
    ]
