"""A supernet of a scale-permuted network from its training to the search of its dilations."""

import jax
import numpy as np
import pytest
from helpers import fresh_variables, largest_difference, randomised, tiny_batch
from supernet_checks import RETINA, one_output

from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.models.build import Detector
from crnas_jax.models.supernet import banks
from crnas_jax.models.supernet.connection_spec import ConnectionSupernetSpec
from crnas_jax.models.supernet.scale_operations import ScaleSupernetSpec
from crnas_jax.parallel.mesh import make_mesh, put_batch
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.greedy import complete, greedy, num_evaluations
from crnas_jax.search.supernet.bn_calibration import calibrate
from crnas_jax.search.supernet.evaluator import SubnetEvaluator
from crnas_jax.search.supernet.scorer import ScoreOptions, SubnetScorer
from crnas_jax.search.supernet.scores import SupernetScores
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.loop import train

SPEC = ScaleSupernetSpec(one_output((2, "residual", (0, 1))), (1, 2), tie="level")
DETECTOR = Detector(SPEC, RETINA)
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
    assert all(len(code) == 2 and np.isfinite(score) for code, score in ranked)
    assert scores.effort()["evaluated"] == num_evaluations(SPEC.space, beam=2) == 6
    # The same search again is read from the journal.
    lines = (tmp_path / "journal.jsonl").read_text()
    assert greedy([SPEC.space], _scores(variables, tmp_path, "batch"), beam=2) == [ranked]
    assert (tmp_path / "journal.jsonl").read_text() == lines
    found = SPEC.network(SPEC.space.operations_of(ranked[0][0]))
    assert found.block_dilations == SPEC.space.dilations_of(ranked[0][0])


@pytest.mark.campaign
@pytest.mark.programs
@pytest.mark.parametrize("spec", [SPEC, ConnectionSupernetSpec(SPEC.arch)], ids=["ops", "parents"])
def test_statistics_and_detections_are_the_stand_alone_networks(spec):
    """Of one mini-batch they are its own, and detections with them those of the network."""
    detector, mesh = Detector(spec, RETINA), make_mesh(2, 1)
    variables = jax.device_put(randomised(fresh_variables(detector)))
    choices = [detector.sample(0, step) for step in range(3)]
    batch = put_batch(mesh, {**tiny_batch(), "image_id": np.arange(2)})
    evaluator = SubnetEvaluator(detector, mesh)
    stats = calibrate(evaluator, variables, [batch], choices)
    detections = evaluator.detect(variables, batch, choices, stats)
    for index, (choice, path_stats) in enumerate(zip(choices, stats, strict=True)):
        if isinstance(spec, ConnectionSupernetSpec):
            network = spec.network(spec.parents_of(choice))
        else:
            network = spec.network(choice["ops"])
        alone = Detector(network, RETINA)
        with_stats = {
            "params": detector.extract(variables, choice)["params"],
            # What the path has is in the rows that it takes of the banks.
            "batch_stats": detector.extract(
                {"batch_stats": _into_banks(detector, variables, choice, path_stats)}, choice
            )["batch_stats"],
        }
        expected = jax.jit(alone.statistics)(with_stats, batch, None)
        scale = max(1.0, *(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected)))
        assert largest_difference(with_stats["batch_stats"], expected) <= 1e-5 * scale
        expected = jax.jit(alone.apply)(with_stats, batch, None)
        np.testing.assert_allclose(detections["scores"][index], expected["scores"], atol=1e-5)
    assert evaluator.compilations <= 4


def _into_banks(detector, variables, choice, stats):
    bank = variables["batch_stats"]
    return banks.scatter(bank, detector.rows(bank, choice), stats)
