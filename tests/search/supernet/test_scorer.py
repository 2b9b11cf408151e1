"""The scorer: nothing that was computed is computed again, wherever a search was interrupted."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import randomised, tiny_options

from crnas_jax.data import loader
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator, compact_detections, to_results
from crnas_jax.evaluation.matching import GroundTruth
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet.banks import SupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.runtime import interruption
from crnas_jax.search.cache import ResultCache
from crnas_jax.search.journal import Journal
from crnas_jax.search.supernet import scorer as scoring
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.search.supernet.scores import SupernetScores

SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1, 2), (1,), (1,)))
CODES = [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1)]
OPTIONS = ScoreOptions(4, ImageSize(64, 64), calibration_images=8, num_devices=1)
DETECTOR = Detector(SPEC, tiny_options())
MESH = make_mesh(4, 1)
EVALUATOR = SubnetEvaluator(DETECTOR, MESH)  # its programs serve all tests


class Crash(Exception):
    """The machine went down."""


class CountingEvaluator(SubnetEvaluator):
    """Adds (first image, path) of every subnet that it runs to `calls`, and crashes on demand."""

    moments, schedule = EVALUATOR.moments, EVALUATOR.schedule

    def watch(self, calls, crash_after):
        object.__setattr__(self, "watched", (calls, crash_after))
        return self

    def detect_in_chunks(self, variables, batch, choices, *arguments):
        calls, crash_after = self.watched
        image = int(batch["image_key"][0])
        for positions, detections in EVALUATOR.detect_in_chunks(
            variables, batch, choices, *arguments
        ):
            if crash_after is not None and len(calls) >= crash_after:
                raise Crash
            branches = (choices[position]["branch"].tolist() for position in positions)
            calls.extend((image, *branch) for branch in branches)
            yield positions, detections


def _choice_of(code, batch):
    return SPEC.choice(code)


@pytest.fixture(scope="module")
def variables():
    return randomised(jax.device_get(jax.jit(DETECTOR.init)(jax.random.key(0))))


@pytest.fixture(scope="module")
def val(variables):
    """Images with objects where the first subnet detects some, so that its AP is not 0."""
    source = SyntheticSource(10, 64, seed=1)
    annotations = []
    for result in _results(variables, source, CODES[0]):
        box = [round(side) for side in result["bbox"]]
        if result["score"] > 0.3 and min(box[2:]) > 0:
            annotation = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({**result, **annotation, "id": len(annotations) + 1})
    source.coco["annotations"] = annotations
    return source


def _results(variables, source, code):
    """Yield the detections of one subnet by itself, in COCO's format."""
    plan = loader.Plan(source.sizes, 4, OPTIONS.seed, keep_all=True)
    for batch in loader.batches(source, plan, DetectionRows(OPTIONS.size)):
        device_batch = put_batch(MESH, batch)
        detections = EVALUATOR.detect(variables, device_batch, [SPEC.choice(code)], bn="running")
        detections = {name: leaf[0] for name, leaf in detections.items()}
        yield from to_results(compact_detections(detections, batch), source.category_ids)


@pytest.fixture
def make_scorer(variables, val, monkeypatch):
    """Make a scorer in a folder; the subnets that it runs are added to `calls`."""

    def make(folder, calls, crash_after=None, bn="recalibrate"):
        evaluator = CountingEvaluator(DETECTOR, MESH).watch(calls, crash_after)
        monkeypatch.setattr(scoring, "shared_evaluator", lambda *arguments: evaluator)
        return SubnetScorer(
            DETECTOR,
            variables,
            SyntheticSource(8, 64, seed=0),
            val,
            dataclasses.replace(OPTIONS, bn=bn),
            Journal(folder / "journal.jsonl", "key"),
            folder / "cache",
        )

    return make


@pytest.fixture
def score(make_scorer):
    """Score all codes."""

    def run(folder, calls, crash_after=None, bn="recalibrate", codes=CODES, **options):
        scorer = make_scorer(folder, calls, crash_after, bn)
        return scorer.score("stage", codes, _choice_of, **options)

    return run


@pytest.fixture
def one_subnet_a_file(monkeypatch):
    """Write the results of every subnet to disk by themselves."""
    monkeypatch.setattr(scoring, "CHUNK", 1)


def test_a_crash_loses_only_the_chunk_in_flight(score, tmp_path, one_subnet_a_file):
    expected = score(tmp_path / "whole", calls := [])
    assert len(calls) == len(set(calls)) == 3 * 3  # codes x mini-batches
    assert not list((tmp_path / "whole").rglob("matches-*.npz"))
    calls, folder = [], tmp_path / "cut"
    for crash_after in (0, 1, 3, 8):
        with pytest.raises(Crash):
            score(folder, calls, crash_after)
    assert score(folder, calls) == expected
    assert len(calls) == len(set(calls)) == 9
    assert score(folder, calls) == expected
    assert len(calls) == 9, "journaled scores were computed again"


def test_more_mini_batches_go_on_where_fewer_ended(score, tmp_path):
    expected = score(tmp_path / "whole", [], bn="batch")
    folder = tmp_path / "cut"
    first = score(folder, calls := [], bn="batch", num_batches=1, keep_matches=True)
    assert len(calls) == 3
    assert [entry.num_images for entry in first] == [4, 4, 4]
    assert score(folder, calls, bn="batch") == expected
    assert len(calls) == len(set(calls)) == 9
    assert [entry.num_images for entry in expected] == [10, 10, 10]
    assert all(entry.interval[0] <= entry.value <= entry.interval[1] for entry in expected)


def test_a_code_that_is_given_twice_is_scored_once(score, tmp_path):
    first, again = score(tmp_path, calls := [], bn="batch", codes=CODES[:1] * 2)
    assert first == again
    assert len(calls) == 3
    assert (tmp_path / "journal.jsonl").read_text().count("\n") == 1
    with pytest.raises(ValueError, match="4 mini-batches of 3"):
        score(tmp_path, calls, bn="batch", num_batches=4)


def test_strategies_see_the_scores_of_one_search(make_scorer, tmp_path):
    scorer = make_scorer(tmp_path, calls := [], bn="batch")
    scores = SupernetScores(scorer, "stage", _choice_of, lambda codes: f"{len(codes)} codes")
    assert scores.num_batches == 3
    assert [scores.num_images(count) for count in (1, 2, 3)] == [4, 8, 10]
    assert scores.num_objects(1) < scores.num_objects(3)
    partial = scores.score_on(CODES, 1)
    assert partial == [entry.value for entry in scorer.score("stage", CODES, _choice_of, "", 1)]
    draws = scores.draws(CODES, 1)
    assert draws.shape == (3, OPTIONS.bootstrap_samples)
    assert scores.effort() == {"evaluated": 3, "image_passes": 12}
    assert list(tmp_path.rglob("matches-*.npz"))
    assert scores.score(CODES) != partial
    assert len(calls) == 9
    assert scores.effort() == {"evaluated": 3, "image_passes": 30}
    scores.clear()
    assert not list(tmp_path.rglob("matches-*.npz"))


def test_statistics_see_no_image_twice():
    source = SyntheticSource(10, 64)
    for calibration_images, num_batches in ((512, 2), (8, 2), (4, 1), (1, 1)):
        options = dataclasses.replace(OPTIONS, calibration_images=calibration_images)
        assert options.calibration_plan(source)[1] == num_batches


def test_draws_outlive_the_matches(make_scorer, tmp_path):
    scorer = make_scorer(tmp_path, calls := [], bn="batch")
    scorer.score("stage", CODES, _choice_of, num_batches=1, keep_matches=True)
    assert len(calls) == 3
    draws = scorer.draws("stage", CODES, _choice_of, 1)
    assert draws.shape == (3, OPTIONS.bootstrap_samples)
    scorer.clear("stage")
    again = make_scorer(tmp_path, calls, bn="batch").draws("stage", CODES, _choice_of, 1)
    np.testing.assert_array_equal(draws, again)
    assert len(calls) == 3


def test_images_without_objects_are_refused_before_anything_is_run(val):
    ground_truth = GroundTruth.from_source(val)
    OPTIONS.require_objects(val, ground_truth)
    ground_truth.num_counted[:] = 0
    with pytest.raises(UserError, match="no object in the 2 mini-batches"):
        dataclasses.replace(OPTIONS, num_batches=2).require_objects(val, ground_truth)


def test_a_damaged_file_counts_as_absent(score, tmp_path, one_subnet_a_file):
    expected = score(tmp_path / "whole", [], bn="batch")
    with pytest.raises(Crash):
        score(tmp_path / "cut", calls := [], 5, bn="batch")
    files = sorted((tmp_path / "cut").rglob("matches-*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert score(tmp_path / "cut", calls, bn="batch") == expected
    assert len(calls) > len(set(calls))


def test_a_request_to_stop_saves_what_is_finished(score, tmp_path, monkeypatch, one_subnet_a_file):
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped, match="finished results are saved"):
        score(tmp_path, calls := [], bn="batch")
    assert len(calls) == 1
    assert len(ResultCache(tmp_path / "cache" / "matches", "key stage").matches()) == 1


def test_scores_are_those_of_pycocotools_on_the_same_detections(score, variables, val, tmp_path):
    scores, reference = score(tmp_path, [], bn="running"), CocoEvaluator.from_source(val)
    for entry, code in zip(scores, CODES, strict=True):
        metrics = reference.evaluate(list(_results(variables, val, code))).metrics
        assert entry.value == pytest.approx(metrics["AP"], abs=1e-9)
    assert scores[0].value > 0.5
    assert len({entry.value for entry in scores}) == 3
