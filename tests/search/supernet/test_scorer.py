"""Scoring: nothing found or scored is worked out twice, wherever it was interrupted."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import randomised, tiny_options

from crnas_jax.data import loader
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator, compact, to_results
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.runtime import interruption
from crnas_jax.search.cache import PartialResults
from crnas_jax.search.journal import Journal
from crnas_jax.search.supernet import scorer as scoring
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer

SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1, 2), (1,), (1,)))
CODES = [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1)]
OPTIONS = ScoreOptions(4, ImageSize(64, 64), calibration_images=8, devices=1)
DETECTOR = Detector(SPEC, tiny_options())


class Crash(Exception):
    """The machine went down."""


MESH = make_mesh(4, 1)
EVALUATOR = SubnetEvaluator(DETECTOR, MESH)  # its programs serve all tests


@pytest.fixture(scope="module")
def variables():
    return randomised(jax.device_get(jax.jit(DETECTOR.init)(jax.random.key(0))))


@pytest.fixture(scope="module")
def val(variables):
    """Images whose objects are what the first subnet finds: untrained as it is, it is worth
    something.
    """
    source = SyntheticSource(10, 64, seed=1)
    annotations = []
    for found in _one_by_one(variables, source, CODES[0]):
        box = [round(side) for side in found["bbox"]]
        if found["score"] > 0.3 and min(box[2:]) > 0:
            area, number = box[2] * box[3], len(annotations) + 1
            one = {**found, "bbox": box, "area": area, "iscrowd": 0, "id": number}
            annotations.append(one)
    source.coco["annotations"] = annotations
    return source


def _one_by_one(variables, source, code):
    """The plain way: one subnet by itself, detections in COCO's format."""
    plan = loader.Plan(source.sizes, 4, OPTIONS.seed, whole=True)
    for batch in loader.batches(source, plan, DetectionRows(OPTIONS.size)):
        device = put_batch(MESH, batch)
        one = EVALUATOR.detect(variables, device, [SPEC.choice(code)], bn="running")
        own = compact({name: leaf[0] for name, leaf in one.items()}, batch)
        yield from to_results(own, source.category_ids)


@pytest.fixture
def score(variables, val):
    """Scores all codes; what the evaluator worked out is added to `calls`."""

    def run(folder, calls, crash_after=None, bn="recalibrate", **given):
        scorer = SubnetScorer(
            DETECTOR,
            variables,
            SyntheticSource(8, 64, seed=0),
            val,
            dataclasses.replace(OPTIONS, bn=bn),
            Journal(folder / "journal.jsonl", "key"),
            folder / "partial",
        )

        class Counted:
            moments, schedule = EVALUATOR.moments, EVALUATOR.schedule

            def detect_in_chunks(self, variables, batch, choices, *rest):
                image = int(batch["image_key"][0])
                for positions, found in EVALUATOR.detect_in_chunks(
                    variables, batch, choices, *rest
                ):
                    if crash_after is not None and len(calls) >= crash_after:
                        raise Crash
                    branches = (choices[position]["branch"].tolist() for position in positions)
                    calls.extend((image, *branch) for branch in branches)
                    yield positions, found

        scorer._evaluator = Counted()
        given = {"codes": CODES, **given}
        return scorer.score("stage", choices_of=lambda code, _: SPEC.choice(code), **given)

    return run


@pytest.fixture
def each_by_itself(monkeypatch):
    """Every subnet's results go to disk by themselves."""
    monkeypatch.setattr(scoring, "CHUNK", 1)


def test_a_crash_loses_the_chunk_in_flight_only(score, tmp_path, each_by_itself):
    whole, once = [], score(tmp_path / "whole", calls := [])
    assert len(calls) == len(set(calls)) == 3 * 3  # codes x mini-batches
    assert not list((tmp_path / "whole").rglob("matches-*.npz"))
    (tmp_path / "cut").mkdir()
    for crash_after in (0, 1, 3, 8):
        with pytest.raises(Crash):
            score(tmp_path / "cut", whole, crash_after)
    assert score(tmp_path / "cut", whole) == once
    assert len(whole) == len(set(whole)) == 9
    assert score(tmp_path / "cut", whole) == once
    assert len(whole) == 9, "journaled scores were computed again"


def test_more_mini_batches_go_on_where_fewer_ended(score, tmp_path):
    whole = score(tmp_path / "whole", [], bn="batch")
    first = score(tmp_path / "cut", calls := [], bn="batch", batches=1, keep=True)
    assert len(calls) == 3
    assert [one.images for one in first] == [4, 4, 4]
    assert score(tmp_path / "cut", calls, bn="batch") == whole
    assert len(calls) == len(set(calls)) == 9
    assert [one.images for one in whole] == [10, 10, 10]
    assert all(one.interval[0] <= one.value <= one.interval[1] for one in whole)


def test_a_code_that_is_given_twice_is_scored_once(score, tmp_path):
    first, again = score(tmp_path, calls := [], bn="batch", codes=CODES[:1] * 2)
    assert first == again
    assert len(calls) == 3
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 1
    with pytest.raises(ValueError, match="4 mini-batches of 3"):
        score(tmp_path, calls, bn="batch", batches=4)


def test_statistics_see_no_image_twice():
    source = SyntheticSource(10, 64)
    for images, number in ((512, 2), (8, 2), (4, 1), (1, 1)):
        options = dataclasses.replace(OPTIONS, calibration_images=images)
        assert options.calibration(source)[1] == number


def test_draws_outlive_the_matches(score, variables, val, tmp_path):
    def draws(folder):
        journal = Journal(folder / "journal.jsonl", "key")
        train, options = SyntheticSource(8, 64, seed=0), dataclasses.replace(OPTIONS, bn="batch")
        scorer = SubnetScorer(DETECTOR, variables, train, val, options, journal, folder / "partial")
        scorer._evaluator = None  # nothing is to be worked out
        return scorer.draws("stage", CODES, lambda code, _: SPEC.choice(code), 1), scorer

    score(tmp_path, [], bn="batch", batches=1, keep=True)
    first, scorer = draws(tmp_path)
    assert first.shape == (3, OPTIONS.samples)
    scorer.clear("stage")
    np.testing.assert_array_equal(first, draws(tmp_path)[0])


def test_images_without_objects_are_refused_before_anything_is_run(val):
    truth = GroundTruth.of(val)
    OPTIONS.require_objects(val, truth)
    truth.counted[:] = 0
    with pytest.raises(UserError, match="no object in the 2 mini-batches"):
        dataclasses.replace(OPTIONS, batches=2).require_objects(val, truth)


def test_a_damaged_part_is_as_good_as_absent(score, tmp_path, each_by_itself):
    once = score(tmp_path / "whole", [], bn="batch")
    with pytest.raises(Crash):
        score(tmp_path / "cut", calls := [], 5, bn="batch")
    parts = sorted((tmp_path / "cut").rglob("matches-*.npz"))
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    assert score(tmp_path / "cut", calls, bn="batch") == once
    assert len(calls) > len(set(calls))


def test_a_request_to_stop_keeps_what_was_found(score, tmp_path, monkeypatch, each_by_itself):
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped, match="kept"):
        score(tmp_path, calls := [], bn="batch")
    assert len(calls) == 1
    kept = PartialResults(tmp_path / "partial" / "matches", "key stage")
    assert len(kept.matches()) == 1


def test_scores_are_those_of_pycocotools_on_the_same_detections(score, variables, val, tmp_path):
    scores, reference = score(tmp_path, [], bn="running"), CocoEvaluator.of(val)
    for own, code in zip(scores, CODES, strict=True):
        found = list(_one_by_one(variables, val, code))
        assert own.value == pytest.approx(reference.evaluate(found).metrics["AP"], abs=1e-9)
    assert scores[0].value > 0.5
    assert len({own.value for own in scores}) == 3
