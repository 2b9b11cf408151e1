"""Scoring: nothing found or scored is worked out twice, wherever it was interrupted."""

import jax
import pytest
from conftest import randomised, tiny_options

from crnas_jax import interruption
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import ImageSize
from crnas_jax.models.banks import SupernetSpec
from crnas_jax.models.build import Detector
from crnas_jax.search.journal import Journal
from crnas_jax.search.partial import PartialResults
from crnas_jax.search.scoring import ScoreOptions, SubnetScorer

SPEC = SupernetSpec("resnet_basic", (8, 8, 16, 16), ((1, 2), (1, 2), (1,), (1,)))
CODES = [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 1)]
OPTIONS = ScoreOptions(4, ImageSize(64, 64), calibration_images=8, chunk=2, devices=1)
DETECTOR = Detector(SPEC, tiny_options())


class Crash(Exception):
    """The machine went down."""


@pytest.fixture(scope="module")
def variables():
    return randomised(jax.device_get(jax.jit(DETECTOR.init)(jax.random.key(0))))


def _score(variables, folder, calls, crash_after=None, bn="recalibrate"):
    """Scores all codes; what the evaluator worked out is added to `calls`."""
    import dataclasses

    journal = Journal(folder / "journal.jsonl", "key")
    scorer = SubnetScorer(
        DETECTOR,
        variables,
        SyntheticSource(8, 64, seed=0),
        SyntheticSource(10, 64, seed=1),
        dataclasses.replace(OPTIONS, bn=bn),
        journal,
        folder / "partial",
    )
    evaluator = scorer._evaluator

    class Counted:
        def detect(self, variables, batch, choices, *rest):
            if crash_after is not None and len(calls) >= crash_after:
                raise Crash
            image = int(batch["image_key"][0])
            calls.extend((image, *choice["branch"].tolist()) for choice in choices)
            return evaluator.detect(variables, batch, choices, *rest)

        def moments(self, variables, batch, choices):
            return evaluator.moments(variables, batch, choices)

    scorer._evaluator = Counted()
    return scorer.score("stage", CODES, lambda code, _: SPEC.choice(code))


def test_a_crash_loses_the_chunk_in_flight_only(variables, tmp_path):
    whole, once = [], _score(variables, tmp_path / "whole", calls := [])
    assert len(calls) == len(set(calls)) == 3 * 3  # codes x mini-batches
    assert not list((tmp_path / "whole" / "partial").rglob("*.npz"))
    (tmp_path / "cut").mkdir()
    for crash_after in (0, 1, 3, 8):
        with pytest.raises(Crash):
            _score(variables, tmp_path / "cut", whole, crash_after)
    assert _score(variables, tmp_path / "cut", whole) == once
    assert len(whole) == len(set(whole)) == 9
    assert _score(variables, tmp_path / "cut", whole) == once
    assert len(whole) == 9, "journaled scores were computed again"


def test_a_damaged_part_is_as_good_as_absent(variables, tmp_path):
    once = _score(variables, tmp_path / "whole", [], bn="batch")
    with pytest.raises(Crash):
        _score(variables, tmp_path / "cut", calls := [], 5, bn="batch")
    parts = sorted((tmp_path / "cut" / "partial").rglob("detections-*.npz"))
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    assert _score(variables, tmp_path / "cut", calls, bn="batch") == once
    assert len(calls) > len(set(calls))


def test_a_request_to_stop_keeps_what_was_found(variables, tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped, match="kept"):
        _score(variables, tmp_path, calls := [], bn="batch")
    assert len(calls) == OPTIONS.chunk
    assert len(PartialResults(tmp_path / "partial", "key stage").detections()) == OPTIONS.chunk
