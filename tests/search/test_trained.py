"""Trained scores: AP of the stored detections; nothing is trained or detected twice."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import largest_difference, tiny_options

from crnas_jax.arch.staged import Arch
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.data.transforms import DetectionRows, ImageSize
from crnas_jax.errors import UserError
from crnas_jax.evaluation.coco import CocoEvaluator
from crnas_jax.export.weights import load_weights
from crnas_jax.models.build import Detector
from crnas_jax.search import trained
from crnas_jax.search.journal import Journal
from crnas_jax.search.trained import TrainedScoreOptions, TrainedScores
from crnas_jax.training.job import TrainingJob, TrainOptions
from crnas_jax.training.step import Trainer

SIZE = ImageSize(64, 64)
CODE, OTHER_CODE = (1, 1, 1, 1), (1, 2, 1, 1)
TRAIN = SyntheticSource(4, 64, seed=0)


def _job(name, code, init_from=""):
    arch = Arch("resnet_basic", code, widths=(4, 4, 8, 8))
    model, options = Detector(arch, tiny_options()), TrainOptions(1.0, 4, num_devices=1)
    return TrainingJob(name, model, TRAIN, DetectionRows(SIZE, 5), options, init_from)


def _name(code):
    return "".join(map(str, code))


def _scores(folder, split, jobs_of=lambda code: [_job(_name(code), code)]):
    options = TrainedScoreOptions(4, SIZE, bootstrap_samples=20, num_devices=1)
    journal = Journal(folder / "journal.jsonl", "key")
    return TrainedScores("trained", jobs_of, split, options, journal, folder)


def _detections_file(folder):
    (file,) = (folder / _name(CODE)).glob("detections-*.json")
    return str(file.relative_to(folder))


def _detections(folder):
    return json.loads((folder / _detections_file(folder)).read_text())


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """Return the folder of a finished run, its score, and a split with objects that it detects."""
    folder, split = tmp_path_factory.mktemp("trained"), SyntheticSource(6, 64, seed=1)
    (score,) = _scores(folder, split).score([CODE])
    objects = SyntheticSource(6, 64, seed=1)
    large = [result for result in _detections(folder) if min(result["bbox"][2:]) > 4]
    objects.coco["annotations"] = [
        {
            **result,
            "bbox": [*result["bbox"][:2], *(0.9 * side for side in result["bbox"][2:])],
            "iscrowd": 0,
            "id": index,
        }
        for index, result in enumerate(large[::2], 1)
    ]
    return folder, score, objects


@pytest.fixture
def trainings(monkeypatch, first_run):
    """Collect the names of trained jobs; weights are constant, detections those of the run."""
    names, results = [], _detections(first_run[0])

    def train(job, folder, initialise=None):
        names.append(job.name)
        fresh = jax.tree.map(lambda leaf: np.full(leaf.shape, len(names), leaf.dtype), shapes)
        return initialise(fresh) if initialise else fresh

    shapes = _job("shapes", CODE).model.shapes
    monkeypatch.setattr(trained, "train", train)
    monkeypatch.setattr(trained, "predict_split", lambda *arguments: results)
    return names


def _copy(folder, target, names):
    target.mkdir(exist_ok=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((folder / name).read_bytes())


def test_a_score_is_the_ap_of_the_stored_detections(first_run, tmp_path, trainings):
    folder, score, objects = first_run
    evaluator = CocoEvaluator.from_source(SyntheticSource(6, 64, seed=1))
    detections = _detections(folder)
    assert score == pytest.approx(evaluator.evaluate(detections).metrics["AP"], abs=1e-9)
    # Other objects, of which the same detections find some.
    _copy(folder, tmp_path, [_detections_file(folder)])
    (score,) = _scores(tmp_path, objects).score([CODE])
    metrics = CocoEvaluator.from_source(objects).evaluate(detections).metrics
    assert 0.1 < score < 0.95
    assert score == pytest.approx(metrics["AP"], abs=1e-9)
    assert not trainings


def test_a_journaled_candidate_is_neither_trained_nor_evaluated_again(
    first_run, tmp_path, trainings
):
    folder, score, _ = first_run
    _copy(folder, tmp_path, ["journal.jsonl"])
    scores = _scores(tmp_path, SyntheticSource(6, 64, seed=1))
    assert scores.score([CODE, CODE]) == [score, score]
    assert scores.effort() == {"evaluated": 1, "image_passes": 6}
    assert not trainings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl"]


def test_stored_detections_without_a_journal_line_are_scored_without_training(
    first_run, tmp_path, trainings
):
    folder, score, _ = first_run
    _copy(folder, tmp_path, [_detections_file(folder)])
    assert _scores(tmp_path, SyntheticSource(6, 64, seed=1)).score([CODE]) == [score]
    assert not trainings
    (line,) = (tmp_path / "journal.jsonl").read_text().splitlines()
    row, (original,) = json.loads(line), (folder / "journal.jsonl").read_text().splitlines()
    assert row == json.loads(original)
    assert (row["search"], row["code"], row["images"]) == ("trained", list(CODE), 6)
    assert row["ci95"][0] <= row["score"] <= row["ci95"][1]


def test_a_candidate_that_was_interrupted_after_its_training_is_restored(
    first_run, tmp_path, monkeypatch
):
    folder, score, _ = first_run
    checkpoints = f"{_name(CODE)}/checkpoints"
    shutil.copytree(folder / checkpoints, tmp_path / checkpoints)
    restored, results = [], _detections(folder)

    def take_step(*arguments):
        raise AssertionError("it is trained again")

    def predict(detector, variables, *arguments):
        restored.append(variables)
        return results

    monkeypatch.setattr(Trainer, "step", take_step)
    monkeypatch.setattr(trained, "predict_split", predict)
    assert _scores(tmp_path, SyntheticSource(6, 64, seed=1)).score([CODE]) == [score]
    (variables,) = restored
    assert largest_difference(variables, load_weights(folder / _name(CODE))[0]) == 0


def test_each_candidate_is_trained_once(tmp_path, trainings):
    split = SyntheticSource(6, 64, seed=1)
    first, _, again = _scores(tmp_path, split).score([CODE, OTHER_CODE, CODE])
    assert trainings == [_name(CODE), _name(OTHER_CODE)]
    assert first == again
    for _ in range(2):
        scores = _scores(tmp_path, split)
        assert scores.score([OTHER_CODE, CODE])[1] == first
        assert scores.effort() == {"evaluated": 2, "image_passes": 12}
        assert trainings == [_name(CODE), _name(OTHER_CODE)]
        (tmp_path / "journal.jsonl").unlink()


def test_detections_of_another_split_or_size_are_not_taken(first_run, tmp_path, trainings):
    folder, _, _ = first_run
    _copy(folder, tmp_path, [_detections_file(folder)])
    other_split = _scores(tmp_path, SyntheticSource(6, 64, seed=2))
    scores = _scores(tmp_path, SyntheticSource(6, 64, seed=1))
    larger = dataclasses.replace(scores.options, size=ImageSize(64, 96))
    other_size = dataclasses.replace(scores, options=larger, name="larger")
    for scores in (other_split, other_size):
        trainings.clear()
        scores.score([CODE])
        assert trainings == [_name(CODE)]


def test_a_split_without_objects_is_refused(tmp_path):
    empty = SyntheticSource(2, 64, seed=1)
    empty.coco["annotations"] = []
    with pytest.raises(UserError, match="no object"):
        _scores(tmp_path, empty)


def test_earlier_jobs_are_trained_first_and_the_last_starts_from_them(tmp_path, trainings):
    def jobs_of(code):
        return [_job("pretrain", code), _job("detector", code, tmp_path / "pretrain")]

    _scores(tmp_path, SyntheticSource(6, 64, seed=1), jobs_of).score([CODE])
    assert trainings == ["pretrain", "detector"]
    weights = [load_weights(tmp_path / name)[0]["params"] for name in trainings]
    for params in weights:
        assert all((leaf == 1).all() for leaf in jax.tree.leaves(params["backbone"]))
