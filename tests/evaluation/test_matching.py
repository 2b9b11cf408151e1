"""Matching on arrays and AP from it: pycocotools' numbers on random and hand-made problems."""

import json

import jax
import numpy as np
import pytest

from crnas_jax.evaluation.average_precision import (
    METRICS,
    MatchTable,
    bootstrap_weights,
    confidence_interval,
    match_records,
    match_tables,
    paired_bootstrap,
)
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.evaluation.matching import GroundTruth, match
from crnas_jax.evaluation.results import detections_from_results

SIDES = [8, 16, 40, 90, 120]


def _problem(seed, num_images=6, max_detections=20, unit=1):
    """Return annotations and the results of two detectors.

    Boxes lie on a lattice, so that IoUs fall on thresholds and are equal to each other. Scores tie.
    There are crowds, images without objects and a class without objects, and image ids have gaps
    and are not in order.
    """
    rng = np.random.default_rng(seed)
    num_classes = 1 if seed % 3 == 0 else 3
    ids = rng.permutation(num_images) * 7 + 3
    annotations = []
    for image in ids:
        for _ in range(0 if rng.random() < 0.15 else rng.integers(1, 9)):
            (x, y), (w, h) = rng.integers(0, 60, 2), rng.choice(SIDES, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image),
                    "category_id": 2 * int(rng.integers(1, num_classes + 1)),
                    "bbox": [unit * int(side) for side in (x, y, w, h)],
                    "area": float(unit**2 * w * h * rng.choice([1, 0.5])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    coco = {
        "images": [{"id": int(image), "height": 200, "width": 200} for image in ids],
        "categories": [{"id": 2 * c, "name": str(c)} for c in range(1, num_classes + 2)],
        "annotations": annotations,
    }
    return coco, [_results(rng, coco, num_classes, max_detections, unit) for _ in range(2)]


def _results(rng, coco, num_classes, max_detections, unit):
    results = []
    for image in coco["images"]:
        objects = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        for _ in range(rng.integers(0, max_detections + 1)):
            x, y, w, h = *rng.integers(0, 100, 2), *rng.integers(1, 100, 2)
            category = 2 * int(rng.integers(1, num_classes + 2))
            if objects and rng.random() < 0.7:
                near = objects[rng.integers(len(objects))]
                shift = rng.integers(-4, 5, 4) * (rng.random() < 0.8)
                x, y, w, h = np.round(np.array(near["bbox"]) / unit) + shift
                category = near["category_id"] if rng.random() < 0.9 else category
            box = [float(unit * side) for side in (x, y, max(w, 1), max(h, 1))]
            score = round(float(rng.random()), 1) + 0.05
            results.append(
                {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            )
    return results


def _arrays(coco, results_of_detectors):
    """Return the detections of several detectors as `match_tables` takes them, and image ids."""
    categories = [category["id"] for category in coco["categories"]]
    ids = np.array([image["id"] for image in coco["images"]])
    detections = [detections_from_results(r, categories, ids) for r in results_of_detectors]
    size = max(arrays["scores"].shape[2] for arrays in detections)

    def pad(leaf):
        return np.pad(
            leaf, [(0, 0), (0, 0), (0, size - leaf.shape[2])] + [(0, 0)] * (leaf.ndim - 3)
        )

    return jax.tree.map(lambda *leaves: np.concatenate([*map(pad, leaves)]), *detections), ids


@pytest.mark.parametrize("unit", [1, 0.1, 1 / 3], ids=["whole", "tenths", "thirds"])
def test_random_problems_have_pycocotools_numbers(unit):
    # Whole sides leave nothing to round. Other sides show whether the last bit is pycocotools', and
    # compilers join products and sums only where there are this many detections.
    for seed in range(200 if unit == 1 else 40):
        coco, results_of_detectors = _problem(
            seed, max_detections=20 if unit == 1 else 90, unit=unit
        )
        detections, ids = _arrays(coco, results_of_detectors)
        tables = match_tables(GroundTruth(coco), detections, ids)
        reference = CocoEvaluator(coco)
        for table, results in zip(tables, results_of_detectors, strict=True):
            expected, metrics = reference.evaluate(results).metrics, table.metrics()
            assert tuple(metrics) == METRICS
            np.testing.assert_allclose(
                [metrics[name] for name in METRICS],
                [expected[name] for name in METRICS],
                atol=1e-12,
            )
            if np.isfinite(metrics["AP"]):
                (ap,) = table.bootstrap_ap(np.ones((1, len(ids))))
                assert ap == pytest.approx(metrics["AP"], abs=1e-9)


def test_only_the_order_of_scores_matters():
    """Scores of foreign networks may be negative or larger than 1."""
    coco, results_of_detectors = _problem(4)
    detections, ids = _arrays(coco, results_of_detectors)
    detections = {**detections, "scores": detections["scores"].astype(np.float32)}
    expected = [table.metrics() for table in match_tables(GroundTruth(coco), detections, ids)]
    for scores in (detections["scores"] - 2, np.exp(detections["scores"])):
        tables = match_tables(GroundTruth(coco), {**detections, "scores": scores}, ids)
        assert [table.metrics() for table in tables] == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.5, -0.0, 0.2], [1, 1, 2]),
        ([0.0, -0.0, 0.2], [1, 1, 2]),
        ([0.5, float("nan"), 0.2], [1, 1, 2]),
        ([0.5, 0.9, 0.2], [1, 0, 2]),
        ([0.5, 0.9, 0.2], [1, 3, 2]),
    ],
)
def test_unusual_scores_and_labels_count_as_in_pycocotools(scores, labels, dtype):
    boxes = [[0, 0, 10, 10], [40, 40, 5, 5], [20, 20, 10, 10]]
    annotations = [
        {"image_id": 1, "category_id": label, "bbox": box, "area": 100, "iscrowd": 0, "id": label}
        for label, box in ((1, boxes[0]), (2, boxes[2]))
    ]
    coco = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": annotations,
    }
    detections = {
        "bbox": np.array(boxes, dtype),
        "scores": np.array(scores, dtype),
        "labels": np.array(labels, np.int32),
        "valid": np.ones(3, bool),
    }
    detections = jax.tree.map(lambda leaf: leaf[None, None], detections)
    (table,) = match_tables(GroundTruth(coco), detections, [1])
    results = [
        {"image_id": 1, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes, scores, strict=True)
    ]
    expected = CocoEvaluator(coco).evaluate(results).metrics
    assert table.metrics() == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_known_answers(shared_data):
    folder = shared_data / "coco_eval_fixtures"
    fixture = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for case in fixture["expected"]["cases"]:
        if case["name"] in ("cocoapi_bbox", "nocrowd_bboxarea_bbox"):
            annotations = fixture[case["gt"].removesuffix(".json")]
            results = fixture[case["dt"].removesuffix(".json")]
            detections, ids = _arrays(annotations, [results])
            (table,) = match_tables(GroundTruth(annotations), detections, ids)
            np.testing.assert_allclose(list(table.metrics().values()), case["expected"], atol=1e-9)


def test_any_number_of_mini_batches_in_any_order():
    coco, (results, _) = _problem(5)
    detections, ids = _arrays(coco, [results])
    ground_truth, records = GroundTruth(coco), []
    batches = ([4, 1], [0, 3], [5, 2])
    for index in batches:
        batch = {name: leaf[:, index] for name, leaf in detections.items()}
        # Boxes are in canvas pixels here, and the scale brings them back.
        scale = np.array([[2, 0.5], [1, 4]], np.float32)
        boxes = batch["bbox"] * scale[:, None, [1, 0, 1, 0]]
        objects = ground_truth.batch(ids[index])
        matches = match(boxes, batch["valid"], batch["labels"], objects, scale, xywh=True)
        first = [jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree) for tree in (batch, matches)]
        records.append(match_records(*first, ids[index], weight=np.ones(2)))
        seen_ids = ids[np.concatenate(batches[: len(records)])]
        table = MatchTable.from_records(ground_truth, records, seen_ids)
        expected = CocoEvaluator(coco).evaluate(
            [entry for entry in results if entry["image_id"] in seen_ids], seen_ids
        )
        assert table.metrics() == pytest.approx(expected.metrics, abs=1e-12, nan_ok=True)
    padded = match_records(*first, ids[index], weight=np.array([1, 0]))
    assert set(padded["image_id"]) <= {ids[index][0]}


def test_more_than_a_hundred_detections_of_a_class_and_many_objects():
    rng = np.random.default_rng(0)

    def box():
        return [float(value) for value in (*rng.uniform(0, 20, 2), *rng.uniform(20, 60, 2))]

    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": box(), "iscrowd": 0}
        for i in range(40)
    ]
    for annotation in annotations:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    coco = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": annotations,
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": box(), "score": float(rng.random())}
        for _ in range(150)
    ]
    detections, ids = _arrays(coco, [results])
    (table,) = match_tables(GroundTruth(coco), detections, ids)
    expected = CocoEvaluator(coco).evaluate(results).metrics
    assert table.metrics() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert expected["AP"] > 0


def test_a_bootstrap_sample_is_the_data_set_with_images_repeated():
    coco, results_of_detectors = _problem(7)
    detections, ids = _arrays(coco, results_of_detectors)
    first, second = match_tables(GroundTruth(coco), detections, ids)
    weights = bootstrap_weights(len(ids), 20, seed=3)
    assert (weights.sum(1) == len(ids)).all()
    order = np.argsort(ids)
    samples = zip(weights[:6].astype(int), first.bootstrap_ap(weights[:6]), strict=True)
    for sample, ap in samples:
        copies = [
            (int(ids[order[row]]), copy)
            for row, num_copies in enumerate(sample)
            for copy in range(num_copies)
        ]
        new_ids = {pair: 1 + place for place, pair in enumerate(copies)}

        def repeat(rows, new_ids=new_ids):
            return [
                {**row, "image_id": new_id, "id": 1000 * new_id + place}
                for (image, _), new_id in new_ids.items()
                for place, row in enumerate(rows)
                if row["image_id"] == image
            ]

        images = [{"id": new_id, "height": 200, "width": 200} for new_id in new_ids.values()]
        repeated = {**coco, "images": images, "annotations": repeat(coco["annotations"])}
        results = repeat(results_of_detectors[0])
        expected = CocoEvaluator(repeated).evaluate(results).metrics["AP"]
        # Detections of the copies of an image tie, and the order of equal scores may differ.
        assert ap == pytest.approx(expected, abs=0.02)
    difference, (low, high) = paired_bootstrap(first, second, 50)
    assert difference == pytest.approx(second.metrics()["AP"] - first.metrics()["AP"])
    assert low <= difference <= high
    assert paired_bootstrap(first, first, 20) == (0.0, (0.0, 0.0))


def test_intervals_include_the_value():
    interval = confidence_interval(np.array([0.2, 0.3, 0.4]), 0.9)
    assert interval == (pytest.approx(0.205), 0.9)


def test_an_image_that_the_annotations_do_not_have_is_refused():
    coco, _ = _problem(1)
    with pytest.raises(KeyError, match="999"):
        GroundTruth(coco).batch(np.array([999]))
