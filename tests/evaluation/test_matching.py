"""Matching on arrays and AP from it: pycocotools' numbers, on any problem."""

import jax
import numpy as np
import pytest

from crnas_jax.evaluation.average_precision import (
    METRICS,
    MatchTable,
    bootstrap,
    flags,
    interval,
    match_tables,
    of_results,
    paired_bootstrap,
)
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.evaluation.matching import GroundTruth, match

SIDES = [8, 16, 40, 90, 120]


def _problem(seed, images=6, most=20, unit=1):
    """Lattice boxes (IoUs on thresholds and equal ones), tied scores, crowds, empty images, a class
    without objects; image ids with gaps, not in order.
    """
    rng = np.random.default_rng(seed)
    classes = 1 if seed % 3 == 0 else 3
    ids = rng.permutation(images) * 7 + 3
    annotations = []
    for image in ids:
        for _ in range(0 if rng.random() < 0.15 else rng.integers(1, 9)):
            (x, y), (w, h) = rng.integers(0, 60, 2), rng.choice(SIDES, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": int(image),
                    "category_id": 2 * int(rng.integers(1, classes + 1)),
                    "bbox": [unit * int(side) for side in (x, y, w, h)],
                    "area": float(unit**2 * w * h * rng.choice([1, 0.5])),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    coco = {
        "images": [{"id": int(image), "height": 200, "width": 200} for image in ids],
        "categories": [{"id": 2 * c, "name": str(c)} for c in range(1, classes + 2)],
        "annotations": annotations,
    }
    return coco, [_detections(rng, coco, classes, most, unit) for _ in range(2)]


def _detections(rng, coco, classes, most, unit):
    results = []
    for image in coco["images"]:
        own = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        for _ in range(rng.integers(0, most + 1)):
            x, y, w, h = *rng.integers(0, 100, 2), *rng.integers(1, 100, 2)
            category = 2 * int(rng.integers(1, classes + 2))
            if own and rng.random() < 0.7:
                near = own[rng.integers(len(own))]
                shift = rng.integers(-4, 5, 4) * (rng.random() < 0.8)
                x, y, w, h = np.round(np.array(near["bbox"]) / unit) + shift
                category = near["category_id"] if rng.random() < 0.9 else category
            box = [float(unit * side) for side in (x, y, max(w, 1), max(h, 1))]
            score = round(float(rng.random()), 1) + 0.05
            results.append(
                {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            )
    return results


def _arrays(coco, detectors):
    """As `match_tables` wants them, of several detectors."""
    categories = [category["id"] for category in coco["categories"]]
    ids = np.array([image["id"] for image in coco["images"]])
    found = [of_results(results, categories, ids) for results in detectors]
    most = max(one["scores"].shape[2] for one in found)

    def pad(leaf):
        return np.pad(
            leaf, [(0, 0), (0, 0), (0, most - leaf.shape[2])] + [(0, 0)] * (leaf.ndim - 3)
        )

    return jax.tree.map(lambda *leaves: np.concatenate([*map(pad, leaves)]), *found), ids


@pytest.mark.parametrize("unit", [1, 0.1, 1 / 3], ids=["whole", "tenths", "thirds"])
def test_random_problems_have_pycocotools_numbers(unit):
    # Whole sides leave nothing to round; others tell a last bit that is not pycocotools', and only
    # where there are so many detections do compilers join products and sums.
    for seed in range(200 if unit == 1 else 40):
        coco, detectors = _problem(seed, most=20 if unit == 1 else 90, unit=unit)
        found, ids = _arrays(coco, detectors)
        tables = match_tables(GroundTruth(coco), found, ids)
        reference = CocoEvaluator(coco)
        for table, results in zip(tables, detectors, strict=True):
            wanted, metrics = reference.evaluate(results).metrics, table.metrics()
            assert tuple(metrics) == METRICS
            np.testing.assert_allclose(
                [metrics[name] for name in METRICS], [wanted[name] for name in METRICS], atol=1e-12
            )
            if np.isfinite(metrics["AP"]):
                (ap,) = table.ap(np.ones((1, len(ids))))
                assert ap == pytest.approx(metrics["AP"], abs=1e-9)


def test_only_the_order_of_scores_counts():
    """Those of others' networks may be negative."""
    coco, detectors = _problem(4)
    found, ids = _arrays(coco, detectors)
    found = {**found, "scores": found["scores"].astype(np.float32)}
    for scores in (found["scores"] - 2, np.exp(found["scores"])):
        tables = match_tables(GroundTruth(coco), {**found, "scores": scores}, ids)
        for own, wanted in zip(tables, match_tables(GroundTruth(coco), found, ids), strict=True):
            assert own.metrics() == wanted.metrics()


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
def test_others_scores_and_labels_count_as_in_pycocotools(scores, labels, dtype):
    boxes = [[0, 0, 10, 10], [40, 40, 5, 5], [20, 20, 10, 10]]
    truths = [
        {"image_id": 1, "category_id": label, "bbox": box, "area": 100, "iscrowd": 0, "id": label}
        for label, box in ((1, boxes[0]), (2, boxes[2]))
    ]
    coco = {
        "images": [{"id": 1, "height": 50, "width": 50}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": truths,
    }
    found = {
        "bbox": np.array(boxes, dtype),
        "scores": np.array(scores, dtype),
        "labels": np.array(labels, np.int32),
        "valid": np.ones(3, bool),
    }
    (table,) = match_tables(GroundTruth(coco), jax.tree.map(lambda x: x[None, None], found), [1])
    results = [
        {"image_id": 1, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(labels, boxes, scores, strict=True)
    ]
    wanted = CocoEvaluator(coco).evaluate(results).metrics
    assert table.metrics() == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_known_answers(shared_data):
    import json

    folder = shared_data / "coco_eval_fixtures"
    fixture = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for known in fixture["expected"]["cases"]:
        if known["name"] in ("cocoapi_bbox", "nocrowd_bboxarea_bbox"):
            truth = fixture[known["gt"].removesuffix(".json")]
            found, ids = _arrays(truth, [fixture[known["dt"].removesuffix(".json")]])
            (table,) = match_tables(GroundTruth(truth), found, ids)
            np.testing.assert_allclose(list(table.metrics().values()), known["expected"], atol=1e-9)


def test_any_number_of_mini_batches_in_any_order():
    coco, detectors = _problem(5)
    found, ids = _arrays(coco, detectors[:1])
    truth, parts = GroundTruth(coco), []
    batches = ([4, 1], [0, 3], [5, 2])
    for index in batches:
        own = {name: leaf[:, index] for name, leaf in found.items()}
        # Boxes in canvas pixels: the scale brings them back.
        scale = np.array([[2, 0.5], [1, 4]], np.float32)
        boxes = own["bbox"] * scale[:, None, [1, 0, 1, 0]]
        truths = truth.batch(ids[index])
        matches = match(boxes, own["valid"], own["labels"], truths, scale, xywh=True)
        first = [jax.tree.map(lambda leaf: np.asarray(leaf)[0], tree) for tree in (own, matches)]
        parts.append(flags(*first, ids[index], weight=np.ones(2)))
        part_ids = ids[[i for batch in batches[: len(parts)] for i in batch]]
        table = MatchTable.of(truth, parts, part_ids)
        wanted = CocoEvaluator(coco).evaluate(
            [one for one in detectors[0] if one["image_id"] in part_ids], part_ids
        )
        assert table.metrics() == pytest.approx(wanted.metrics, abs=1e-12, nan_ok=True)
    padded = flags(*first, ids[index], weight=np.array([1, 0]))
    assert set(padded["image_id"]) <= {ids[index][0]}


def test_more_than_a_hundred_detections_of_a_class_and_many_objects():
    rng = np.random.default_rng(0)
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [float(v) for v in (*rng.uniform(0, 20, 2), *rng.uniform(20, 60, 2))],
            "iscrowd": 0,
        }
        for i in range(40)
    ]
    coco = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{**one, "area": one["bbox"][2] * one["bbox"][3]} for one in annotations],
    }
    results = [
        {
            "image_id": 1,
            "category_id": 1,
            "bbox": [float(v) for v in (*rng.uniform(0, 20, 2), *rng.uniform(20, 60, 2))],
            "score": float(rng.random()),
        }
        for _ in range(150)
    ]
    found, ids = _arrays(coco, [results])
    (table,) = match_tables(GroundTruth(coco), found, ids)
    wanted = CocoEvaluator(coco).evaluate(results).metrics
    assert table.metrics() == pytest.approx(wanted, abs=1e-12, nan_ok=True)
    assert wanted["AP"] > 0


def test_a_bootstrap_sample_is_the_data_set_with_images_repeated():
    coco, (results, other) = _problem(7)
    found, ids = _arrays(coco, [results, other])
    first, second = match_tables(GroundTruth(coco), found, ids)
    weights = bootstrap(len(ids), 20, seed=3)
    assert (weights.sum(1) == len(ids)).all()
    order = np.argsort(ids)
    for sample, ap in zip(weights[:6].astype(int), first.ap(weights[:6]), strict=True):
        copies = [
            (int(ids[order[row]]), copy)
            for row, number in enumerate(sample)
            for copy in range(number)
        ]
        new = {pair: 1 + place for place, pair in enumerate(copies)}

        def repeat(rows, new=new):
            return [
                {**row, "image_id": number, "id": 1000 * number + place}
                for (image, _), number in new.items()
                for place, row in enumerate(rows)
                if row["image_id"] == image
            ]

        again = {
            **coco,
            "images": [{"id": number, "height": 200, "width": 200} for number in new.values()],
            "annotations": repeat(coco["annotations"]),
        }
        wanted = CocoEvaluator(again).evaluate(repeat(results)).metrics["AP"]
        # Copies of an image tie: which of two equal detections comes first may differ.
        assert ap == pytest.approx(wanted, abs=0.02)
    value, (low, high) = paired_bootstrap(first, second, 50)
    assert value == pytest.approx(second.metrics()["AP"] - first.metrics()["AP"])
    assert low <= value <= high
    assert paired_bootstrap(first, first, 20) == (0.0, (0.0, 0.0))


def test_intervals_hold_the_value():
    assert interval(np.array([0.2, 0.3, 0.4]), 0.9) == (pytest.approx(0.205), 0.9)


def test_an_image_that_the_annotations_do_not_have_is_refused():
    coco, _ = _problem(1)
    with pytest.raises(KeyError, match="999"):
        GroundTruth(coco).batch(np.array([999]))
