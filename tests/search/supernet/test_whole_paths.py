"""A supernet of a scale-permuted network from its training to the search of its dilations."""

import jax
import numpy as np
import pytest
from helpers import tiny_spinenet

from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.models.build import Detector
from crnas_jax.models.heads.retina_head import RetinaHeadOptions
from crnas_jax.models.retinanet import RetinaNetOptions
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.greedy import complete, greedy, num_evaluations
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.search.supernet.scores import SupernetScores
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train

SPEC = ScaleSupernetSpec(tiny_spinenet(num_levels=3), (1, 2), tie="level")
DETECTOR = Detector(SPEC, RetinaNetOptions(3, 16, RetinaHeadOptions("spinenet", 1)))
SIZE = ImageSize(64, 64)


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """Banks after a few steps of the real training."""
    rows = DetectionRows(SIZE, 5)
    options = TrainOptions(2, 4, num_devices=1)
    job = TrainingJob("operation_supernet", DETECTOR, SyntheticSource(8, 64), rows, options)
    return jax.device_get(train(job, tmp_path_factory.mktemp("training")))


def _scores(variables, folder, bn):
    options = ScoreOptions(4, SIZE, bn=bn, calibration_images=4, num_devices=1)
    sources = (SyntheticSource(4, 64), SyntheticSource(8, 64, seed=1))
    journal = Journal(folder / "journal.jsonl", "tiny")
    scorer = SubnetScorer(DETECTOR, variables, *sources, options, journal, folder)

    def choice_of(code, batch):
        return SPEC.choice(SPEC.space.operations_of(complete(SPEC.space, code, 0, batch)))

    return SupernetScores(scorer, "operation", choice_of)


def test_greedy_searches_dilations_in_a_trained_supernet(variables, tmp_path):
    scores = _scores(variables, tmp_path, "batch")
    (ranked,) = greedy([SPEC.space], scores, beam=2)
    assert all(len(code) == 3 and np.isfinite(score) for code, score in ranked)
    assert scores.effort()["evaluated"] == num_evaluations(SPEC.space, beam=2) == 10
    # The same search again is read from the journal.
    lines = (tmp_path / "journal.jsonl").read_text()
    assert greedy([SPEC.space], _scores(variables, tmp_path, "batch"), beam=2) == [ranked]
    assert (tmp_path / "journal.jsonl").read_text() == lines
    found = SPEC.network(SPEC.space.operations_of(ranked[0][0]))
    assert found.block_dilations == SPEC.space.dilations_of(ranked[0][0])
