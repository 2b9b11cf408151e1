"""VOC AP: published answers, the devkit's rules on small cases, and the devkit's loops."""

import json

import numpy as np
import pytest

from crnas_jax.evaluation.voc import voc_ap


def _dataset(objects, class_names=("object",)):
    """Return annotations of (image, category, bbox) or (image, category, bbox, difficult)."""
    return {
        "images": [{"id": image} for image in sorted({entry[0] for entry in objects})],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, 1)],
        "annotations": [
            {
                "id": index,
                "image_id": entry[0],
                "category_id": entry[1],
                "bbox": entry[2],
                "iscrowd": 0,
                "difficult": int(len(entry) > 3 and entry[3]),
            }
            for index, entry in enumerate(objects, 1)
        ],
    }


def _results(*detections):
    """Return results of (image, category, bbox, score)."""
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, entry, strict=True)) for entry in detections]


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "coco_eval_fixtures"
    objects, detections = [], []
    for path in sorted((folder / "pascal_case1" / "gts").iterdir()):
        for line in path.read_text().splitlines():
            objects.append((int(path.stem), 1, [float(v) for v in line.split()[1:]]))
    for path in sorted((folder / "pascal_case1" / "dets").iterdir()):
        for line in path.read_text().splitlines():
            score, *box = (float(v) for v in line.split()[1:])
            detections.append((int(path.stem), 1, box, score))
    expected = json.loads((folder / "expected.json").read_text())["pascal_case1"]
    return _dataset(objects), _results(*detections), expected


@pytest.mark.parametrize("iou", ["0.1", "0.3", "0.5", "0.75"])
@pytest.mark.parametrize("method", ["eleven_point", "every_point"])
def test_published_answers(published, method, iou):
    dataset, results, expected = published
    eleven_point = method == "eleven_point"
    metrics = voc_ap(dataset, results, float(iou), eleven_point=eleven_point, inclusive=True)
    assert metrics["AP"] == pytest.approx(expected[method][iou], abs=1e-9)
    assert metrics["per_class"] == {"object": metrics["AP"]}


def test_half_of_the_objects_detected_and_a_class_without_objects():
    dataset = _dataset([(1, 1, [0, 0, 9, 9]), (2, 1, [0, 0, 9, 9])], ("a", "b"))
    results = _results((2, 1, [0, 0, 9, 9], 0.9), (2, 2, [0, 0, 9, 9], 0.9))
    area, eleven = voc_ap(dataset, results), voc_ap(dataset, results, eleven_point=True)
    assert area["AP"] == area["per_class"]["a"] == pytest.approx(0.5)
    assert eleven["AP"] == pytest.approx(6 / 11)  # recalls 0, 0.1, ..., 0.5
    assert np.isnan(area["per_class"]["b"])
    assert voc_ap(dataset, [])["AP"] == 0
    assert np.isnan(voc_ap({**dataset, "annotations": []}, results)["AP"])


def test_an_iou_equal_to_the_threshold_is_a_match():
    dataset, results = _dataset([(1, 1, [0, 0, 10, 10])]), _results((1, 1, [0, 0, 10, 5], 0.5))
    assert voc_ap(dataset, results, iou=0.5)["AP"] == 1
    assert voc_ap(dataset, results, iou=0.51)["AP"] == 0


def test_only_the_object_of_largest_iou_is_tried():
    """The second detection also overlaps the free object, by 2/3, and would take it in COCO."""
    dataset = _dataset([(1, 1, [0, 0, 10, 10]), (1, 1, [0, 2.5, 10, 10])])
    results = _results((1, 1, [0, 0, 10, 10], 0.9), (1, 1, [0, 0.5, 10, 10], 0.8))
    assert voc_ap(dataset, results)["AP"] == pytest.approx(0.5)


def test_difficult_objects_count_neither_as_detected_nor_as_missed():
    objects = [(1, 1, [0, 0, 9, 9]), (1, 1, [20, 0, 9, 9], True)]
    hit = (1, 1, [0, 0, 9, 9], 0.5)
    twice = [(1, 1, [20, 0, 9, 9], 0.9), (1, 1, [20, 0, 9, 9], 0.8)]
    assert voc_ap(_dataset(objects), _results(hit, *twice))["AP"] == 1
    assert voc_ap(_dataset([objects[0]]), _results(hit, *twice))["AP"] == pytest.approx(1 / 3)
    assert np.isnan(voc_ap(_dataset(objects[1:]), _results(hit))["AP"])
    crowd = _dataset(objects)
    crowd["annotations"][1].update(difficult=0, iscrowd=1)
    assert voc_ap(crowd, _results(hit, *twice))["AP"] == 1


def test_equal_scores_keep_their_order():
    dataset = _dataset([(1, 1, [0, 0, 9, 9])])
    hit, miss = (1, 1, [0, 0, 9, 9], 0.5), (1, 1, [50, 0, 9, 9], 0.5)
    misses = [miss] * 30
    assert voc_ap(dataset, _results(hit, *misses))["AP"] == 1
    assert voc_ap(dataset, _results(*misses, hit))["AP"] == pytest.approx(1 / 31)


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_results_of_another_data_set_are_refused(field):
    (entry,) = _results((1, 1, [0, 0, 9, 9], 0.5))
    with pytest.raises(ValueError, match="no such image or category"):
        voc_ap(_dataset([(1, 1, [0, 0, 9, 9])]), [{**entry, field: 7}])


def test_perfect_detections_of_real_annotations(shared_data):
    dataset = json.loads((shared_data / "voc100" / "val.json").read_text())
    results = [{**entry, "score": 0.9} for entry in dataset["annotations"]]
    for eleven_point in (False, True):
        metrics = voc_ap(dataset, results, 0.99, eleven_point)
        assert metrics["AP"] == 1
        assert set(metrics["per_class"]) == {entry["name"] for entry in dataset["categories"]}
    easy = [entry for entry in results if not entry["difficult"]]
    assert len(easy) == len(results) - 12
    assert voc_ap(dataset, easy)["AP"] == 1


def _devkit_ap(dataset, results, iou, eleven_point):
    """Return the AP of one class by VOCdevkit's loops, in 1-based pixels with both ends inside."""

    def ends(x, y, width, height):
        return x + 1, y + 1, x + width, y + height

    objects = [(t["image_id"], ends(*t["bbox"]), t["difficult"]) for t in dataset["annotations"]]
    taken, true, false = set(), [], []
    for entry in sorted(results, key=lambda entry: -entry["score"]):
        box, max_iou, best = ends(*entry["bbox"]), -1.0, None
        for index, (image, object_box, _) in enumerate(objects):
            width = min(box[2], object_box[2]) - max(box[0], object_box[0]) + 1
            height = min(box[3], object_box[3]) - max(box[1], object_box[1]) + 1
            if image == entry["image_id"] and width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, object_box)]
                pair_iou = width * height / (sum(areas) - width * height)
                if pair_iou > max_iou:
                    max_iou, best = pair_iou, index
        if max_iou >= iou and objects[best][2]:
            continue
        hit = max_iou >= iou and best not in taken
        taken |= {best} if hit else set()
        true.append(hit)
        false.append(not hit)
    num_objects = sum(not difficult for _, _, difficult in objects)
    recall = [sum(true[: k + 1]) / num_objects for k in range(len(true))]
    precision = [sum(true[: k + 1]) / (k + 1) for k in range(len(true))]
    if eleven_point:
        at = [
            max([p for p, r in zip(precision, recall, strict=True) if r >= t], default=0)
            for t in np.linspace(0, 1, 11)
        ]
        return sum(at) / 11
    return sum(
        (r - before) * max(precision[k:])
        for k, (before, r) in enumerate(zip([0, *recall], recall, strict=False))
    )


@pytest.mark.parametrize("seed", range(20))
def test_against_the_devkit_on_random_boxes(seed):
    rng = np.random.default_rng(seed)

    def box():
        return [int(v) for v in (*rng.integers(0, 12, 2), *rng.integers(3, 12, 2))]

    objects = [(int(rng.integers(1, 4)), 1, box(), rng.random() < 0.2) for _ in range(12)]
    dataset = _dataset([*objects, (1, 1, box()), (2, 1, box()), (3, 1, box())])
    results = _results(
        *((int(rng.integers(1, 4)), 1, box(), float(rng.integers(9)) / 9) for _ in range(40))
    )
    for iou in (0.2, 0.5):
        for eleven_point in (False, True):
            ap = voc_ap(dataset, results, iou, eleven_point)["AP"]
            assert ap == pytest.approx(_devkit_ap(dataset, results, iou, eleven_point), abs=1e-12)
