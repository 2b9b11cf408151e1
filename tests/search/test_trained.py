"""Trained scores: AP of the candidates' detections, journaled; nothing is trained twice."""

import json

import numpy as np
import pytest

from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.errors import UserError
from crnas_jax.evaluation.average_precision import bootstrap_weights
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.search.journal import Journal
from crnas_jax.search.trained import TrainedScores

SPLIT = SyntheticSource(6, 64, seed=1)
CODE, OTHER_CODE = (1, 1, 1, 1), (1, 2, 1, 1)


def _results(code):
    """Detect all objects, more or less exactly."""
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": [
                annotation["bbox"][0] + (1 + sum(code) % 3) * (index % 3),
                *annotation["bbox"][1:],
            ],
            "score": 1 / (1 + index),
        }
        for index, annotation in enumerate(SPLIT.coco["annotations"])
    ]


class Trainings:
    """Candidates' detections; notes which were asked for, and fails after a number of them."""

    def __init__(self, limit=99):
        self.codes, self.limit = [], limit

    def __call__(self, code):
        if len(self.codes) == self.limit:
            raise RuntimeError("killed")
        self.codes.append(code)
        return _results(code)


def _scores(folder, trainings, **options):
    journal = Journal(folder / "journal.jsonl", "key")
    return TrainedScores("trained", trainings, SPLIT, journal, 20, **options)


def test_a_score_is_the_ap_of_the_detections(tmp_path):
    scores = _scores(tmp_path, Trainings())
    for code, score in zip((CODE, OTHER_CODE), scores.score([CODE, OTHER_CODE]), strict=True):
        metrics = CocoEvaluator.from_source(SPLIT).evaluate(_results(code)).metrics
        assert 0.1 < score < 0.999
        assert score == pytest.approx(metrics["AP"], abs=1e-9)
    row = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert (row["search"], row["code"], row["images"]) == ("trained", list(CODE), 6)
    assert row["ci95"][0] <= row["score"] <= row["ci95"][1]


def test_each_candidate_is_trained_once_and_none_that_is_journaled(tmp_path):
    trainings = Trainings()
    first, _, again = _scores(tmp_path, trainings).score([CODE, OTHER_CODE, CODE])
    assert trainings.codes == [CODE, OTHER_CODE]
    assert first == again
    scores = _scores(tmp_path, trainings)
    assert scores.score([OTHER_CODE, CODE])[1] == first
    assert scores.effort() == {"evaluated": 2, "image_passes": 12}
    assert trainings.codes == [CODE, OTHER_CODE]


def test_a_candidate_is_journaled_before_the_next_is_trained(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        _scores(tmp_path, Trainings(limit=1)).score([CODE, OTHER_CODE])
    trainings = Trainings()
    _scores(tmp_path, trainings).score([CODE, OTHER_CODE])
    assert trainings.codes == [OTHER_CODE]


def test_draws_are_scores_on_the_same_resampled_images(tmp_path):
    draws = _scores(tmp_path, Trainings()).draws([CODE, OTHER_CODE])
    assert draws.shape == (2, 20)
    weights = bootstrap_weights(6, 20, 0)
    for draw in (0, 7):
        # Images that are drawn twice count twice: copies of them under other ids.
        images = np.repeat(np.arange(6), weights[draw].astype(int))
        copy = SyntheticSource(6, 64, seed=1)
        ids = {int(SPLIT.image_ids[image]): image for image in range(6)}
        copy.coco["images"] = [
            {**copy.coco["images"][image], "id": place} for place, image in enumerate(images)
        ]
        objects, detections = [], []
        for place, image in enumerate(images):
            for kind, rows in ((objects, SPLIT.coco["annotations"]), (detections, _results(CODE))):
                own = [row for row in rows if ids[row["image_id"]] == image]
                kind += [{**row, "image_id": place} for row in own]
        copy.coco["annotations"] = [{**row, "id": i} for i, row in enumerate(objects, 1)]
        expected = CocoEvaluator(copy.coco).evaluate(detections).metrics["AP"]
        assert draws[0, draw] == pytest.approx(expected, abs=1e-6)


def test_trainings_may_be_prepared_at_once(tmp_path):
    """What is to be trained is told before; codes in the journal are not."""
    prepared = []
    _scores(tmp_path, Trainings()).score([CODE])
    scores = _scores(tmp_path, Trainings(), prepare=prepared.append)
    scores.score([CODE, OTHER_CODE])
    assert prepared == [[OTHER_CODE]]


def test_a_split_without_objects_is_refused(tmp_path):
    empty = SyntheticSource(2, 64, seed=1)
    empty.coco["annotations"] = []
    with pytest.raises(UserError, match="no object"):
        TrainedScores("trained", Trainings(), empty, Journal(tmp_path / "journal.jsonl", "key"))
