"""The search of scale-permuted networks as a step of a run, with a table in place of trainings."""

import hashlib
import json
import types

import pytest
from helpers import four_blocks

from configs import search_spinenet
from crnas_jax.errors import UserError
from crnas_jax.experiments import (
    architecture_plan,
    architecture_search,
    crnas,
    keys,
    spinenet,
    workers,
)
from crnas_jax.experiments.architecture_search import search_architecture
from crnas_jax.experiments.run import open_run
from crnas_jax.search.executors.executor import Executor
from crnas_jax.search.strategies.successive_halving import rung_costs
from crnas_jax.settings import run as run_settings
from tests.search.table import AtOnce


def _value(arch, seed, until, failing=(), **_):
    blocks = [(block["level"], block["kind"], block["parents"]) for block in arch["blocks"]]
    number = int(hashlib.sha256(repr((blocks, seed)).encode()).hexdigest()[:6], 16)
    if number % 5 in failing:
        return {"failure": "memory"}
    return {"AP": number / 2**24, "seconds_of": {"all": 90.0, "compilation": 30.0}, "images": 4}


class Runs:
    """Searches in working folders of a test, whose executors are remembered."""

    def __init__(self, path, monkeypatch):
        self.path, self.executors, self.failing = path, [], ()
        path.mkdir()
        (path / "four.json").write_text(four_blocks().to_json())

        def executor(slots, logs):
            made = AtOnce(lambda **task: _value(**task, failing=self.failing))
            assert isinstance(made, Executor)
            self.executors.append(made)
            return made

        monkeypatch.setattr(workers, "LocalExecutor", executor)

    def open(self, name, **fields):
        config = search_spinenet.get_config("quick")
        with config.unlocked():
            config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
            config.baseline = str(self.path / "four.json")
            config.detector.anchor_sizes = (16.0, 32.0)
            config.space.levels, config.devices = (2, 4), 1
            for field, value in fields.items():
                section, _, entry = field.partition("__")
                config[section][entry] = value
        run = open_run(config, self.path / name, spinenet.require_space)
        run.record()
        return run

    def search(self, name, **fields):
        """Return the result, the trained graphs, and the run."""
        run = self.open(name, **fields)
        try:
            result = search_architecture(run)
        finally:
            run.workdir.release()
        started = self.executors[-1].started if self.executors else []
        return result, [json.dumps(task["arguments"]["arch"]) for task in started], run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    return Runs(tmp_path / "runs", monkeypatch)


def _proposals(run):
    return (run.path / "architecture_search" / "proposals.jsonl").read_text()


def test_more_proposals_go_on_and_fewer_are_the_first_of_them(runs):
    whole, trained, run = runs.search("whole", search__evaluations=60)
    assert (
        len(trained)
        == len(set(trained))
        == len((run.path / "journal.jsonl").read_text().splitlines())
    )
    _, first, cut = runs.search("cut", search__evaluations=50)
    again, second, cut = runs.search("cut", search__evaluations=60)
    assert again["proposals"] == 60
    assert first + second == trained
    assert _proposals(cut) == _proposals(run)
    for name in ("ranking", "evaluated", "rejected", "failed"):
        assert again[name] == whole[name]
    fewer, third, _ = runs.search("cut", search__evaluations=50)
    assert not third
    assert fewer["evaluated"] <= whole["evaluated"]
    assert runs.search("cut", search__evaluations=50)[0] == fewer  # finished


def test_another_strategy_and_more_in_flight_train_nothing_again(runs):
    _, trained, _ = runs.search("run", search__evaluations=30)
    for fields in ({"search__architecture_strategy": "random"}, {"search__in_flight": 4}):
        run = runs.open("run", search__evaluations=30, **fields)
        run.workdir.redo = True
        search_architecture(run)
        run.workdir.release()
        started = [json.dumps(task["arguments"]["arch"]) for task in runs.executors[-1].started]
        assert not set(started) & set(trained)
        trained += started


def test_phases_begin_with_the_best_of_the_one_before(runs):
    phases = (("permutations",), ("connections", "adjustments"))
    result, trained, run = runs.search("run", space__phases=phases, search__evaluations=8)
    assert len(trained) == len(set(trained))
    files = sorted(path.name for path in (run.path / "architecture_search").glob("*.jsonl"))
    assert files == ["proposals.jsonl", "proposals1.jsonl"]
    assert result["score"] == max(row["score"] for row in result["ranking"])
    assert [row["score"] for row in result["ranking"]] == sorted(
        (row["score"] for row in result["ranking"]), reverse=True
    )
    assert result["evaluated"] >= len(result["ranking"])


def test_failures_are_counted_and_never_chosen(runs):
    runs.failing = (0, 1)
    result, _, run = runs.search("run", search__evaluations=24, search__population=6)
    failed = [
        row
        for row in map(json.loads, (run.path / "journal.jsonl").read_text().splitlines())
        if "failure" in row
    ]
    assert 0 < result["failed"] <= len(failed) <= result["failed"] + 1  # the seed network's
    assert result["evaluated"] == result["failed"] + len(result["ranking"])
    assert all(row["score"] > 0 for row in result["ranking"])
    runs.failing = range(5)
    with pytest.raises(UserError, match="5 of 5 candidates failed"):
        runs.search("broken", search__evaluations=24)


def test_other_commands_find_the_network_of_a_finished_search(runs):
    run = runs.open("run", refine__finalists=0)
    run_settings.require_detection(run.config, "returned")
    with pytest.raises(UserError, match="not finished with these fields"):
        crnas.choose_network(run)
    search_architecture(run)
    arch = crnas.choose_network(run)
    run.workdir.release()
    assert [arch] == keys.candidates(run, "architecture")


def test_a_search_in_which_all_score_0_stops(runs, capsys, monkeypatch):
    zero = AtOnce(lambda **task: {"AP": 0.0, "images": 4})
    monkeypatch.setattr(workers, "LocalExecutor", lambda slots, logs: zero)
    with pytest.raises(UserError, match="every candidate of the architecture"):
        runs.search("run")
    started = len(zero.started)
    assert runs.search("run", search__all_zero="continue")[0]["score"] == 0
    assert len(zero.started) == started
    assert "WARNING: every candidate" in capsys.readouterr().out


def test_halving_counts_all_rungs(runs):
    runs.failing = (0,)
    fields = {"search__architecture_strategy": "halving", "search__evaluations": 8}
    result, _, run = runs.search("run", **fields)
    shares = {task["arguments"]["until"] for task in runs.executors[-1].started}
    assert shares == {1 / 9, 1 / 3, 1.0}
    assert result["evaluated"] > len(result["ranking"]) > 0
    assert result["failed"] > 0
    left = list((run.path / "candidates").iterdir())
    # Those of the last rung, and the seed network.
    assert len(left) <= len(result["ranking"]) + 1


def test_seeds_and_no_kept_candidates(runs):
    result, _, run = runs.search("run", proxy__seeds=2, proxy__kept_candidates=0)
    seeds = {task["arguments"]["seed"] for task in runs.executors[-1].started}
    assert len(seeds) == 2
    assert not list((run.path / "candidates").iterdir())
    assert result["evaluated"] == len(result["ranking"])


def test_limits_that_allow_nothing_are_told_before_any_training(runs):
    for strategy in architecture_search.settings.ARCHITECTURE_STRATEGIES:
        fields = {"search__architecture_strategy": strategy, "space__max_flops_ratio": 0.01}
        with pytest.raises(UserError, match="next to nothing"):
            runs.search(strategy, **fields)
        assert not runs.executors[-1].started


def test_a_baseline_with_dilations_is_refused(runs):
    table = json.loads(four_blocks().to_json()) | {"dilations": [1, 2, 1, 1]}
    (runs.path / "four.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="dilations"):
        runs.open("run")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("search__max_latency", 5.0),
        ("search__stage_strategy", "racing"),
        ("refine__finalists", 101),
    ],
)
def test_what_a_search_would_not_heed_is_refused(runs, field, value):
    with pytest.raises(UserError, match=field.replace("__", ".")):
        runs.open("run", **{field: value})


@pytest.mark.parametrize(
    ("phases", "seeds", "costs", "left"),
    [(2, 2, 10 * [1.0], 5 * 20 + 10 * 20), (1, 1, rung_costs(5), (6 / 9 + 2 / 9) * 100 / (5 / 9))],
)
def test_progress_is_that_of_all_phases_and_rungs(monkeypatch, phases, seeds, costs, left):
    shown, clock = {}, [0.0]
    monkeypatch.setattr(architecture_search.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        architecture_search.activity, "show", lambda _, **about: shown.update(about)
    )
    jobs = types.SimpleNamespace(num_ended=0, states=dict)
    progress = architecture_search.Progress(jobs, seeds, phases)
    progress.begin(0, costs)
    jobs.num_ended, clock[0] = 5 * seeds, 100.0
    progress.take_in(5)
    assert (shown["done"], shown["total"]) == (5, phases * len(costs))
    assert shown["seconds_left"] == pytest.approx(left)


def test_rejections_are_counted_alike_after_a_restart(runs):
    fields = {"space__max_flops_ratio": 0.98, "search__evaluations": 12}
    whole, *_ = runs.search("whole", **fields)
    assert whole["rejected"] > 0
    runs.search("cut", **fields | {"search__evaluations": 7})
    assert runs.search("cut", **fields)[0]["rejected"] == whole["rejected"]


def test_the_plan_knows_times_once_the_seed_network_is_trained(runs):
    run = runs.open("run", search__evaluations=30, search__in_flight=3)
    lines = "\n".join(architecture_plan.lines(run))
    assert "times are known" in lines
    search_architecture(run)
    lines = "\n".join(architecture_plan.lines(run))
    run.workdir.release()
    assert "a candidate takes 90 s, 30 s of them compilation" in lines
    assert "45 min with 1, 15 min with 8, 15 min with 100" in lines  # three at once
    # More proposals: what follows from the search is not known yet.
    assert keys.candidates(run, "architecture")
    more = runs.open("run", search__evaluations=31, search__in_flight=3)
    assert keys.candidates(more, "architecture") is None
    more.workdir.release()
