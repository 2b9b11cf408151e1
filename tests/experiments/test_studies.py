"""The studies on made-up scores: what their numbers stand for."""

import dataclasses
import json
import types

import pytest
from helpers import BATCHES, IMAGES, Noisy

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.errors import UserError
from crnas_jax.experiments import steps, studies
from crnas_jax.experiments.run import open_run
from crnas_jax.settings import supernets as supernet_settings
from crnas_jax.settings.run import run_options


class Supernet:
    """Scores as `crnas_search.TrainedSupernet` gives them, made up."""

    arch = Arch("resnet_basic", (2, 2, 2, 2))

    def stage_scores(self, repeat, name):
        return Noisy(repeat)

    def operation_scores(self, partial, repeat, name):
        return Noisy(repeat)


class LastStage:
    """Scores that depend on the last stage and an offset."""

    def __init__(self, offset):
        self.offset = offset

    def score(self, codes):
        return [code[-1] / 10 + self.offset for code in codes]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run with supernets that need no training."""
    config = quickstart.get_config()
    config.supernet.grids = ((1, 2, 3), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 4))
    config.supernet.tie = "block"
    monkeypatch.setattr(studies.crnas, "train_supernet", lambda run, level: Supernet())
    return types.SimpleNamespace(config=config, options=run_options(config), path=tmp_path)


def test_strategies_are_compared_at_equal_image_passes(run):
    study = studies.strategy_study(run, num_seeds=2)
    for level, rows in study.items():
        file = run.path / "strategies" / f"{level}.json"
        assert json.loads(file.read_text())[level] == rows
    space = supernet_settings.stage_spaces(run.config)[8.0]
    codes = list(space.enumerate())
    for seed, rows in enumerate(study["stage"]):
        values = dict(zip(codes, Noisy(seed).score(codes), strict=True))
        assert rows["exhaustive"]["image_passes"] == len(codes) * BATCHES * IMAGES
        for row in rows.values():
            assert row["AP"] == values[tuple(row["code"])]
            assert row["regret"] == max(values.values()) - row["AP"]
        assert rows["exhaustive"]["regret"] == 0
        assert rows["racing"]["share"] <= 0.4
        for name in ("random", "evolution"):
            assert rows["racing"]["image_passes"] - rows[name]["image_passes"] >= 0
            assert rows["racing"]["share"] - rows[name]["share"] < 1 / len(codes)
    for seed, rows in enumerate(study["operation"]):
        assert set(rows) == {"greedy", "random", "evolution"}
        assert len({row["image_passes"] for row in rows.values()}) == 1
        for row in rows.values():
            assert row["AP"] == Noisy(seed).score([tuple(row["code"])])[0]


def test_a_study_of_one_search_leaves_the_other(run):
    assert set(studies.strategy_study(run, 1, ["stage"])) == {"stage"}


def test_the_ranking_study_scores_trains_and_draws(run, monkeypatch):
    def stage_scores(repeat, name):
        assert name == "ranking"  # the study's scores stay apart from those of the stage search
        return LastStage(repeat / 100)

    supernet = types.SimpleNamespace(stage_scores=stage_scores)
    monkeypatch.setattr(studies.crnas, "train_supernet", lambda run, level: supernet)
    monkeypatch.setattr(studies, "trained_scores", lambda run, seed: LastStage(seed / 50))
    study = studies.ranking_study(run, num_subnets=5, num_seeds=2)
    assert len(study["rows"]) == 5
    assert study["rows"][0]["AP"][1] == pytest.approx(study["rows"][0]["AP"][0] + 0.02)
    assert study["agreement"]["tau"] == pytest.approx(1)
    assert study["repeats"]["tau"] == pytest.approx(1)
    assert json.loads((run.path / "ranking" / "result.json").read_text()) == study
    assert (run.path / "ranking" / "scatter.png").stat().st_size > 5000

    # The same trainings beside another supernet: nothing is trained alone again.
    monkeypatch.setattr(studies, "trained_scores", None)
    again = studies.ranking_study(run, 3, 1, 1, run.path / "ranking" / "result.json")
    assert [row["AP"] for row in again["rows"]] == [row["AP"] for row in study["rows"]]
    assert again["agreement"]["regret_top4"] == 0


RECORDS = {
    '{"rows": [{"code": [2, 2, 2, 2]}]}': "KeyError: 'AP'",
    '{"rows": [{"code": [1, 1, 1, 1], "AP": [0.5]}]}': r"\(1, 1, 1, 1\) is no allocation of 8",
    '{"rows": [{"code": [2, 2, 2, 2], "AP": [1]}, {"code": [1, 2, 2, 3], "AP": [1, 2]}]}': (
        "not as many trainings"
    ),
}


@pytest.mark.parametrize("content", RECORDS)
def test_a_record_that_does_not_fit_is_refused(run, content):
    file = run.path / "record.json"
    file.write_text(content)
    with pytest.raises(UserError, match=RECORDS[content]):
        studies.ranking_study(run, 3, 1, against=file)


@pytest.mark.parametrize("networks", [(), ("baseline",)])
def test_candidates_are_trained_as_the_baseline_with_a_seed_each(tmp_path, networks, monkeypatch):
    config = quickstart.get_config()
    config.pretrain.networks = networks
    config.pretrain.data.name = "synthetic"
    config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
    jobs, split = [], []
    monkeypatch.setattr(steps, "_fit", lambda run, job: jobs.append(job))
    for name in ("save_weights", "save_trained", "accuracy"):
        monkeypatch.setattr(steps, name, lambda *_: {"top1": 0.0, "top5": 0.0})
    monkeypatch.setattr(steps, "detections", lambda run, step, detector, name: split.append(name))
    run = open_run(config, tmp_path)
    for seed in (0, 3):
        scores = studies.trained_scores(run, seed)
        assert scores.name == f"trained, seed {seed}"
        scores.detections_of((1, 2, 2, 3))
    names = ["ranking/1-2-2-3", "ranking/1-2-2-3/seed3"]
    assert [job.name for job in jobs] == ["ranking/1-2-2-3/pretrain"] * len(networks) + names
    assert split == ["test", "test"]
    for job, seed in zip(jobs[-2:], (0, 3), strict=True):
        assert job.model.spec.depths == (1, 2, 2, 3)
        baseline = steps.detection_job(run, "", "baseline", job.model.spec, "")
        assert job.options == dataclasses.replace(baseline.options, seed=1000 * seed)
        assert job.init_from == (run.path / "ranking/1-2-2-3/pretrain" if networks else "")
    run.workdir.release()


def test_a_ranking_of_fewer_than_three_subnets_is_refused(run):
    with pytest.raises(UserError, match="at least 3"):
        studies.ranking_study(run, num_subnets=2, num_seeds=2)
    run.config.supernet.grids = ((2,), (2,), (2,), (2,))
    with pytest.raises(UserError, match="1 allocations cost 8"):
        studies.ranking_study(run, num_subnets=5, num_seeds=2)
