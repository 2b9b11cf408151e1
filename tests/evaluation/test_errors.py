"""What a detector gets wrong: kinds and confusions by hand, curves and AP against pycocotools."""

import numpy as np
import pytest

from crnas_jax.evaluation import errors
from crnas_jax.evaluation.average_precision import (
    bootstrap_weights,
    match_tables,
)
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.evaluation.results import detections_from_results


class _Source:
    """A split of images of 100 x 100 with categories 3 and 5."""

    category_ids, class_names, ignore_fields = [3, 5], ["a", "b"], ("iscrowd",)

    def __init__(self, objects, num_images=3):
        images = [{"id": image, "height": 100, "width": 100} for image in range(1, num_images + 1)]
        annotations = [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": crowd,
            }
            for number, (image, category, box, crowd) in enumerate(objects, 1)
        ]
        categories = [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}]
        self.coco = {"images": images, "annotations": annotations, "categories": categories}
        self.image_ids = np.array([image["id"] for image in images])


def _results(detections):
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, row, strict=True)) for row in detections]


OBJECTS = [
    (1, 3, [10, 10, 20, 20], 0),
    (1, 5, [60, 60, 20, 20], 0),
    (2, 5, [10, 10, 30, 30], 0),
    (2, 3, [50, 50, 40, 40], 1),
    *((3, 5, [20 * place, 5, 15, 15], 0) for place in range(4)),
]
DETECTIONS = [
    (1, 3, [10, 10, 20, 20], 0.9),  # true
    (1, 3, [11, 10, 20, 20], 0.8),  # duplicate
    (1, 3, [60, 60, 20, 20], 0.75),  # class: an object of b
    (1, 3, [18, 18, 20, 20], 0.7),  # place: IoU 0.22
    (1, 5, [18, 18, 20, 20], 0.65),  # class and place
    (2, 5, [80, 0, 10, 10], 0.6),  # background
    (2, 3, [52, 52, 30, 30], 0.55),  # in a crowd: does not count
    (2, 5, [10, 10, 30, 29], 0.5),  # true
    *((3, 5, [20 * place, 5, 15, 15], 0.5) for place in range(4)),  # true
    (2, 5, [0, 80, 10, 10], 0.1),  # background
]


def test_kinds_confusions_and_counts_by_hand():
    found = errors.diagnose(_Source(OBJECTS), _results(DETECTIONS), 10)
    assert found.score == 0.5  # where F1 is 2 x 6 / (11 + 7)
    kinds = dict(zip(errors.KINDS, found.false.sum(0).tolist(), strict=True))
    assert kinds == dict.fromkeys(errors.KINDS, 1)
    assert found.false_by_image.tolist() == [4, 1, 0]
    assert found.missed_by_image.tolist() == [1, 0, 0]
    # Rows: a, b, nothing; columns: as a, as b, missed.
    assert found.confusion.tolist() == [[1, 0, 0], [1, 5, 0], [2, 2, 0]]


@pytest.mark.parametrize("detections", [[], DETECTIONS[:1]])
def test_few_detections_are_fine(detections):
    found = errors.diagnose(_Source(OBJECTS), _results(detections), 10)
    assert found.missed_by_image.sum() == 7 - len(detections)
    assert found.false.sum() == 0
    content = found.to_json()
    assert set(content["curves"]) == {"0.5", "0.75"}


def test_nothing_to_detect_gives_no_curve():
    found = errors.diagnose(_Source(OBJECTS[:1]), _results(DETECTIONS), 10)
    content = found.to_json()
    assert content["curves"]["0.5"][1] is None
    assert np.isnan(found.draws["per_class"][:, 1]).all()
    assert np.isnan(found.draws["APl"]).all()


def _random(seed, num_images=20):
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image in range(1, num_images + 1):
        for _ in range(rng.integers(0, 6)):
            x, y = rng.integers(0, 60, 2).tolist()
            w, h = rng.choice([10, 24, 40], 2).tolist()
            category = int(rng.choice([3, 5]))
            objects.append((image, category, [x, y, w, h], int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                dx, dy = rng.integers(-6, 7, 2).tolist()
                other = int(rng.choice([3, 5])) if rng.random() < 0.2 else category
                detections.append((image, other, [x + dx, y + dy, w, h], float(rng.random())))
    return _Source(objects, num_images), _results(detections)


@pytest.mark.parametrize("seed", range(3))
def test_curves_and_class_ap_are_pycocotools(seed):
    source, results = _random(seed)
    found = errors.diagnose(source, results, 10)
    run = CocoEvaluator.from_source(source).prepare(results)
    run.evaluate()
    run.accumulate()
    precision = run.eval["precision"]  # [thresholds, recalls, classes, areas, detections]
    for name, threshold in errors.CURVES.items():
        np.testing.assert_allclose(found.curves[name], precision[threshold, :, :, 0, -1].T)
    image_ids = source.image_ids
    truth = GroundTruth.from_source(source)
    detections = detections_from_results(results, source.category_ids, image_ids)
    (table,) = match_tables(truth, detections, image_ids)
    once = np.ones((1, len(image_ids)))
    for area in range(3):
        expected = precision[:, :, :, area, -1]
        means = np.where((expected > -1).all((0, 1)), expected.mean((0, 1)), np.nan)
        np.testing.assert_allclose(table.bootstrap_class_ap(once, area)[0], means, rtol=1e-6)
    half = table.bootstrap_class_ap(once, thresholds=(0,))[0]
    np.testing.assert_allclose(half, precision[0, :, :, 0, -1].mean(0), rtol=1e-6)
    # The mean over classes is what the search draws.
    weights = bootstrap_weights(len(image_ids), 20, 0)
    drawn = np.nanmean(table.bootstrap_class_ap(weights), 1)
    np.testing.assert_allclose(drawn, table.bootstrap_ap(weights), rtol=1e-9)
