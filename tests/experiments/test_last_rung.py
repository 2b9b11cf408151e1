"""The last rung: the decision's arrays, limits that the baseline breaks, the returned folder."""

import dataclasses
import json
import re
import types

import numpy as np
import pytest

from configs import quickstart
from crnas_jax.arch.staged import Arch
from crnas_jax.experiments import keys, last_rung, limits, steps, trained
from crnas_jax.experiments.last_rung import LastRung, mean_metrics
from crnas_jax.experiments.run import open_run
from crnas_jax.search import refine

WIDTHS = (16, 32, 64, 128)
BASELINE = Arch("resnet_basic", (2, 2, 2, 2), (), WIDTHS)
STAGE_ONLY = Arch("resnet_basic", (1, 1, 2, 4), (), WIDTHS)
SEARCHED = Arch("resnet_basic", (1, 1, 2, 4), (2, 1, 1, 1, 1, 1, 1, 1), WIDTHS)
ARCHS = {"baseline": BASELINE, "stage_only": STAGE_ONLY, "searched": SEARCHED}
# AP of each network with each seed.
AP = {BASELINE: (0.30, 0.31), STAGE_ONLY: (0.32, 0.31), SEARCHED: (0.39, 0.40)}


class Scores:
    """Scores of trained networks, made up."""

    def __init__(self, name, detections_of, *_):
        self.seed = int(re.search(r"seed (\d+)", name)[1])
        self.by_code = {keys.network_code(arch): ap[self.seed] for arch, ap in AP.items()}

    def score(self, codes):
        return [self.by_code[code] for code in codes]

    def draws(self, codes):
        noise = 0.001 * np.random.default_rng(0).normal(size=(len(codes), 40))
        return np.array(self.score(codes))[:, None] + noise


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = quickstart.get_config()
    config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
    monkeypatch.setattr(last_rung, "TrainedScores", Scores)
    monkeypatch.setattr(keys, "compared", lambda run: ARCHS)
    monkeypatch.setattr(keys, "recorded_excess", limits.baseline_excess)  # without a search
    return open_run(config, tmp_path / "run", dry=True)


@pytest.fixture(autouse=True)
def _without_folder(monkeypatch):
    monkeypatch.setattr(last_rung, "Journal", lambda *_: None)


def test_the_decision_is_made_of_seed_means_and_their_draws(run):
    rung = LastRung(run, ARCHS)
    ap, draws = rung.ap("val")
    assert ap.tolist() == [list(AP[arch]) for arch in ARCHS.values()]
    assert draws.mean(1) == pytest.approx(ap.mean(1), abs=1e-3)
    decision = rung.decide()
    assert decision == refine.decide(list(ARCHS), ap, draws, 0.8)
    assert decision.network == "searched"
    assert rung.difference("searched", "test").value == pytest.approx(0.09)


def test_networks_that_coincide_have_one_row(run, monkeypatch):
    archs = {**ARCHS, "searched": STAGE_ONLY}
    monkeypatch.setattr(keys, "compared", lambda run: archs)
    rung = LastRung(run, archs)
    assert rung.names == ["baseline", "stage_only"]
    assert len(rung.ap("val")[0]) == 2
    assert rung.difference("searched", "val") == rung.difference("stage_only", "val")
    rung = LastRung(run, {"baseline": BASELINE, "stage_only": BASELINE, "searched": SEARCHED})
    same = rung.difference("stage_only", "test")  # the same weights, whatever seeds deviate by
    assert (same.value, same.interval) == (0.0, (0.0, 0.0))


def test_a_baseline_that_breaks_limits_is_returned_with_them_named_first(run, monkeypatch):
    run.config.refine.confidence = 0.999999
    run.config.search.max_params = 1000.0
    run.config.budget = 7.0
    decision = LastRung(run, ARCHS).decide()
    assert decision.network == "baseline"
    assert decision.reason.startswith("the baseline has 1.")
    assert "parameters, and 1,000 are allowed; 8 blocks, and the budget is 7; " in decision.reason
    assert "no network is better" in decision.reason


def test_latency_of_a_baseline_off_the_grids_is_measured(run, monkeypatch):
    run.config.search.max_latency = 5.0
    run.config.supernet.grids = ((1,), (1,), (2,), (4,))
    measured = []

    def milliseconds(meter, arch):
        measured.append(meter.detector.spec.choice_of(arch))
        return 7.0

    monkeypatch.setattr(limits.LatencyMeter, "milliseconds", milliseconds)
    text = limits.baseline_excess(run)
    assert text == "the baseline has 7 milliseconds, and 5 are allowed"
    assert len(measured) == 1


def test_the_returned_folder_is_a_copy_that_follows_the_decision(run, monkeypatch):
    for name in ARCHS:
        folder = run.path / name
        (folder / "variables").mkdir(parents=True)
        (folder / "variables" / "data").write_text(name)
        (folder / "variables.sha256").write_text(f"digest of {name}")
        (folder / "detector.json").write_text(json.dumps({"network": name}))
        (folder / "checkpoints").mkdir()
    returned = run.path / "returned"
    for name in ("searched", "baseline", "baseline"):
        before = returned.stat().st_mtime_ns if returned.exists() else None
        last_rung.publish(run, name)
        assert (returned / "variables" / "data").read_text() == name
        assert sorted(p.name for p in returned.iterdir()) == [
            *("detector.json", "variables", "variables.sha256")
        ]
    assert returned.stat().st_mtime_ns == before  # the same again is not copied
    # A kill in between leaves a part that the next start replaces.
    (run.path / ".returned_partial").mkdir()
    last_rung.publish(run, "searched")
    assert (returned / "variables" / "data").read_text() == "searched"
    assert not list(run.path.glob(".returned*"))


def test_finished_weights_have_the_statistics_that_the_config_asks_for(run, monkeypatch):
    saved, asked = [], []
    monkeypatch.setattr(steps, "_fit", lambda run, job: "trained")
    monkeypatch.setattr(
        trained, "save_detector", lambda folder, model, weights, *_: saved.append(weights)
    )
    monkeypatch.setattr(trained, "recalibrate", lambda *args: asked.append(args) or "recalibrated")
    run = dataclasses.replace(
        run, workdir=types.SimpleNamespace(path=run.path, step=lambda *args: args[2]())
    )
    for kind in ("auto", "running", "recalibrate"):
        run.config.trained_bn = kind
        steps.train_network(run, "baseline", BASELINE)
    assert saved == ["recalibrated", "trained", "recalibrated"]
    _, weights, source, _, batch_size, num_images, *_ = asked[0]
    assert (weights, source) == ("trained", run.sources["train"])
    assert (batch_size, num_images) == (4, run.config.trained_bn_images)


def test_metrics_are_means_over_seeds():
    rows = [
        {"AP": 0.2, "params": 7, "arch": {"depths": [1, 2]}, "per_class": {"a": 0.1, "b": None}},
        {"AP": 0.4, "params": 7, "arch": {"depths": [1, 2]}, "per_class": {"a": 0.3, "b": 0.5}},
    ]
    assert mean_metrics(rows) == {
        "AP": pytest.approx(0.3),
        "params": 7,
        "arch": {"depths": [1, 2]},
        "per_class": {"a": pytest.approx(0.2), "b": None},
    }
    assert mean_metrics(rows[:1]) == rows[0]


def test_finalists_are_trained_shortly_and_detect_on_val(run, monkeypatch):
    """With a seed of their own: what chooses a network is not what judges it."""
    asked, jobs = [], []
    monkeypatch.setattr(keys, "candidates", lambda run, choice: [BASELINE, SEARCHED])
    monkeypatch.setattr(keys, "chosen", lambda run, choice: SEARCHED)
    monkeypatch.setattr(
        last_rung.steps, "train_network", lambda *args: jobs.append(steps.network_job(*args))
    )
    monkeypatch.setattr(
        last_rung.steps, "detections", lambda run, step, detector, split: asked.append(split)
    )

    def scores(name, detections_of, *_):
        return types.SimpleNamespace(score=lambda codes: [detections_of(code) for code in codes])

    monkeypatch.setattr(last_rung, "TrainedScores", scores)
    assert last_rung.choose(run, "network") == SEARCHED
    assert asked == ["val", "val"]
    full = [steps.network_job(run, step, BASELINE) for step in ("baseline", "baseline/seed1")]
    assert len({job.options.seed for job in (jobs[0], *full)}) == 3
    assert [job.options.epochs for job in jobs] == pytest.approx([full[0].options.epochs / 3] * 2)
    assert [job.name.partition("/")[0] for job in jobs] == ["finalists", "finalists"]
