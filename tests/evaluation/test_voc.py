"""VOC AP: published answers, the devkit's rules by hand, and its loop written out."""

import json

import numpy as np
import pytest

from crnas_jax.evaluation.voc import voc_ap


def _dataset(truths, classes=("object",)):
    """From (image, category, bbox) or (image, category, bbox, difficult)."""
    return {
        "images": [{"id": image} for image in sorted({truth[0] for truth in truths})],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
        "annotations": [
            {
                "id": number,
                "image_id": truth[0],
                "category_id": truth[1],
                "bbox": truth[2],
                "iscrowd": 0,
                "difficult": int(len(truth) > 3 and truth[3]),
            }
            for number, truth in enumerate(truths, 1)
        ],
    }


def _results(*found):
    names = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(names, entry, strict=True)) for entry in found]


@pytest.fixture(scope="module")
def published(shared_data):
    folder = shared_data / "coco_eval_fixtures"
    truths, found = [], []
    for path in sorted((folder / "pascal_case1" / "gts").iterdir()):
        for line in path.read_text().splitlines():
            truths.append((int(path.stem), 1, [float(v) for v in line.split()[1:]]))
    for path in sorted((folder / "pascal_case1" / "dets").iterdir()):
        for line in path.read_text().splitlines():
            score, *box = (float(v) for v in line.split()[1:])
            found.append((int(path.stem), 1, box, score))
    expected = json.loads((folder / "expected.json").read_text())["pascal_case1"]
    return _dataset(truths), _results(*found), expected


@pytest.mark.parametrize("iou", ["0.1", "0.3", "0.5", "0.75"])
@pytest.mark.parametrize("way", ["eleven_point", "every_point"])
def test_published_answers(published, way, iou):
    truth, found, expected = published
    got = voc_ap(truth, found, float(iou), eleven_point=way == "eleven_point", inclusive=True)
    assert got["AP"] == pytest.approx(expected[way][iou], abs=1e-9)
    assert got["per_class"] == {"object": got["AP"]}


def test_one_of_two_found_and_classes_without_ground_truth():
    truth = _dataset([(1, 1, [0, 0, 9, 9]), (2, 1, [0, 0, 9, 9])], ("a", "b"))
    found = _results((2, 1, [0, 0, 9, 9], 0.9), (2, 2, [0, 0, 9, 9], 0.9))
    area, eleven = voc_ap(truth, found), voc_ap(truth, found, eleven_point=True)
    assert area["AP"] == area["per_class"]["a"] == pytest.approx(0.5)
    assert eleven["AP"] == pytest.approx(6 / 11)  # recalls 0, 0.1, ..., 0.5
    assert np.isnan(area["per_class"]["b"])
    assert voc_ap(truth, [])["AP"] == 0
    assert np.isnan(voc_ap({**truth, "annotations": []}, found)["AP"])


def test_threshold_belongs_to_the_match():
    truth, found = _dataset([(1, 1, [0, 0, 10, 10])]), _results((1, 1, [0, 0, 10, 5], 0.5))
    assert voc_ap(truth, found, iou=0.5)["AP"] == 1
    assert voc_ap(truth, found, iou=0.51)["AP"] == 0


def test_greatest_overlap_alone_is_tried():
    """The second detection overlaps the free box too, by 2/3; COCO's rule would give it that."""
    truth = _dataset([(1, 1, [0, 0, 10, 10]), (1, 1, [0, 2.5, 10, 10])])
    found = _results((1, 1, [0, 0, 10, 10], 0.9), (1, 1, [0, 0.5, 10, 10], 0.8))
    assert voc_ap(truth, found)["AP"] == pytest.approx(0.5)


def test_difficult_is_neither_found_nor_missed():
    truths = [(1, 1, [0, 0, 9, 9]), (1, 1, [20, 0, 9, 9], True)]
    hit = (1, 1, [0, 0, 9, 9], 0.5)
    twice = [(1, 1, [20, 0, 9, 9], 0.9), (1, 1, [20, 0, 9, 9], 0.8)]
    assert voc_ap(_dataset(truths), _results(hit, *twice))["AP"] == 1
    assert voc_ap(_dataset([truths[0]]), _results(hit, *twice))["AP"] == pytest.approx(1 / 3)
    assert np.isnan(voc_ap(_dataset(truths[1:]), _results(hit))["AP"])
    crowd = _dataset(truths)
    crowd["annotations"][1].update(difficult=0, iscrowd=1)
    assert voc_ap(crowd, _results(hit, *twice))["AP"] == 1


def test_equal_scores_keep_their_order():
    truth = _dataset([(1, 1, [0, 0, 9, 9])])
    hit, miss = (1, 1, [0, 0, 9, 9], 0.5), (1, 1, [50, 0, 9, 9], 0.5)
    misses = [miss] * 30
    assert voc_ap(truth, _results(hit, *misses))["AP"] == 1
    assert voc_ap(truth, _results(*misses, hit))["AP"] == pytest.approx(1 / 31)


@pytest.mark.parametrize("field", ["image_id", "category_id"])
def test_results_of_another_data_set_are_refused(field):
    (entry,) = _results((1, 1, [0, 0, 9, 9], 0.5))
    with pytest.raises(ValueError, match="no such image or category"):
        voc_ap(_dataset([(1, 1, [0, 0, 9, 9])]), [{**entry, field: 7}])


def test_real_annotations_found_perfectly(shared_data):
    truth = json.loads((shared_data / "voc100" / "val.json").read_text())
    found = [{**entry, "score": 0.9} for entry in truth["annotations"]]
    for eleven_point in (False, True):
        got = voc_ap(truth, found, 0.99, eleven_point)
        assert got["AP"] == 1
        assert set(got["per_class"]) == {category["name"] for category in truth["categories"]}
    easy = [entry for entry in found if not entry["difficult"]]
    assert len(easy) == len(found) - 12
    assert voc_ap(truth, easy)["AP"] == 1


def _devkit(truth, found, iou, eleven_point):
    """One class by VOCdevkit's loops, in 1-based pixels with both ends included."""

    def ends(x, y, width, height):
        return x + 1, y + 1, x + width, y + height

    remaining = [(t["image_id"], ends(*t["bbox"]), t["difficult"]) for t in truth["annotations"]]
    taken, true, false = set(), [], []
    for entry in sorted(found, key=lambda entry: -entry["score"]):
        box, greatest, best = ends(*entry["bbox"]), -1.0, None
        for number, (image, other, _) in enumerate(remaining):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if image == entry["image_id"] and width > 0 and height > 0:
                areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other)]
                overlap = width * height / (sum(areas) - width * height)
                if overlap > greatest:
                    greatest, best = overlap, number
        if greatest >= iou and remaining[best][2]:
            continue
        hit = greatest >= iou and best not in taken
        taken |= {best} if hit else set()
        true.append(hit)
        false.append(not hit)
    positives = sum(not difficult for _, _, difficult in remaining)
    recall = [sum(true[: k + 1]) / positives for k in range(len(true))]
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

    truths = [(int(rng.integers(1, 4)), 1, box(), rng.random() < 0.2) for _ in range(12)]
    truth = _dataset([*truths, (1, 1, box()), (2, 1, box()), (3, 1, box())])
    found = _results(
        *((int(rng.integers(1, 4)), 1, box(), float(rng.integers(9)) / 9) for _ in range(40))
    )
    for iou in (0.2, 0.5):
        for eleven_point in (False, True):
            got = voc_ap(truth, found, iou, eleven_point)["AP"]
            assert got == pytest.approx(_devkit(truth, found, iou, eleven_point), abs=1e-12)
