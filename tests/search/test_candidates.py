"""Scores of candidates: which are kept, what failures do, and attempts in real processes."""

import json
import os

import pytest
from helpers import ROOT

from crnas_jax.errors import UserError
from crnas_jax.search import candidates as module
from crnas_jax.search.candidates import ByGraph, Candidates, FailureLimit
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.executors.local import LocalExecutor, Slot
from crnas_jax.search.journal import Journal
from crnas_jax.search.strategies.proposing import run_proposer
from tests.search import table
from tests.search.table import AtOnce


def _candidates(tmp_path, executor, function="f", **options):
    def task_of(graph, seed, share):
        arguments = {"code": list(graph)}
        if isinstance(executor, AtOnce):
            arguments |= {"seed": seed, "share": share}
        return {"function": function, "arguments": arguments}

    journal = Journal(tmp_path / "journal.jsonl", "key")
    return Candidates("c", task_of, tmp_path / "c", journal, Jobs(executor, print), **options)


def _value(code, seed, share, folder, earlier):
    return {"AP": (code[0] + seed) / 100, "images": 1, "curve": [[1, 2.0]]}


def test_the_best_keep_their_folders_and_none_is_trained_again(tmp_path):
    executor = AtOnce(_value)
    scores = _candidates(tmp_path, executor, keep=2, about=lambda graph: {"flops": graph[0]})
    for code in (3, 1, 4, 2):
        assert scores.finish((code,)) == code / 100
    kept = {module.candidate_name("key", (code,), 0) for code in (3, 4)}
    assert {path.name for path in (tmp_path / "c").iterdir()} == kept
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [row["flops"] for row in rows] == [3, 1, 4, 2]
    assert all(row["curve"] == [[1, 2.0]] for row in rows)
    again = _candidates(tmp_path, executor, keep=2)
    assert again.finish((1,)) == 0.01
    assert len(executor.started) == 4
    assert again.finish((5,)) == 0.05
    kept = {module.candidate_name("key", (code,), 0) for code in (5, 4)}
    assert {path.name for path in (tmp_path / "c").iterdir()} == kept


def test_seeds_are_averaged(tmp_path):
    executor = AtOnce(_value)
    scores = _candidates(tmp_path, executor, num_seeds=2, keep=1)
    assert scores.finish((1,)) == pytest.approx(0.015)
    assert scores.finish((4,)) == pytest.approx(0.045)
    assert len(list((tmp_path / "c").iterdir())) == 2  # both seeds of the better one
    assert scores.searches == ("c", "c, seed 1")


def test_halving_leaves_no_folder_of_those_that_are_not_promoted(tmp_path):
    executor = AtOnce(_value)
    ended = []
    scores = ByGraph(_candidates(tmp_path, executor), lambda code: code, ended.append)
    codes = [(1,), (2,), (3,)]
    assert scores.score_at(codes, 0.5) == [0.01, 0.02, 0.03]
    assert len(list((tmp_path / "c").iterdir())) == 3
    assert scores.score_at(codes[2:], 1.0) == [0.03]
    (folder,) = (tmp_path / "c").iterdir()
    assert len(list((folder / "attempts").iterdir())) == 2
    assert ended == [""] * 4


def test_lower_rungs_of_a_trained_candidate_are_trained_apart(tmp_path):
    executor = AtOnce(_value)
    assert _candidates(tmp_path, executor).finish((1,)) == 0.01  # by another strategy
    scores = ByGraph(_candidates(tmp_path, executor), lambda code: code)
    name, other = (module.candidate_name("key", code, 0) for code in ((1,), (2,)))
    assert scores.score_at([(1,), (2,)], 0.5) == [0.01, 0.02]
    assert {path.name for path in (tmp_path / "c").iterdir()} == {name, f"{name}-rungs", other}
    assert all(not task["arguments"]["earlier"] for task in executor.started)
    assert scores.score_at([(1,)], 1.0) == [0.01]
    assert len(executor.started) == 3
    assert {path.name for path in (tmp_path / "c").iterdir()} == {name}


def test_too_many_failures_stop_a_search():
    limit = FailureLimit()
    for _ in range(4):
        limit.add("memory")
    with pytest.raises(UserError, match="5 of 5"):
        limit.add("memory")
    limit = FailureLimit()
    for number in range(49):
        limit.add("memory" if number % 5 > 2 else "")
    assert len(limit) == 49  # 19 of them failed
    with pytest.raises(UserError, match="20 of 50"):
        limit.add("memory")
    limit = FailureLimit()
    for number in range(300):
        limit.add("memory" if number % 3 == 0 else "")  # 17 of 50 at most


class Listed:
    """Proposes the codes of a list."""

    def __init__(self, codes):
        self.codes = codes

    def begin(self):
        return 0

    def propose(self, state, rng):
        return self.codes[state]

    def update(self, state, code, score):
        return state + 1


def _local(tmp_path, monkeypatch):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    slots = [Slot(name, {"JAX_PLATFORMS": "cpu"}) for name in ("first", "second")]
    return LocalExecutor(slots, tmp_path / "logs")


def test_attempts_in_processes_are_lost_slow_or_broken(tmp_path, monkeypatch):
    executor = _local(tmp_path, monkeypatch)
    scores = _candidates(tmp_path, executor, "tests.search.table:score")
    # The slow one comes last: then the other worker idles.
    codes = [(1,), (table.LOST,), (table.BROKEN,), (table.DIVERGED,), (2,), (table.SLOW,)]
    by_graph = ByGraph(scores, lambda code: code)
    results = run_proposer(Listed(codes), by_graph, len(codes))
    scores.jobs.close()
    wanted = [0.1, table.LOST / 10, 0.0, 0.0, 0.2, table.SLOW / 10]
    assert [score for _, score in results] == wanted
    assert "no such layer" in scores.failure((table.BROKEN,))
    assert scores.failure((table.DIVERGED,)) == "not finite: loss"
    attempts = {
        code[0]: len(list((tmp_path / "c").glob(f"{scores._job(code, 0)}/attempts/*")))
        for code in codes
    }
    assert attempts == {
        1: 1,
        2: 1,
        table.LOST: 2,
        table.BROKEN: 2,
        table.DIVERGED: 1,
        table.SLOW: 2,
    }
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == len(codes)


def test_a_refusal_of_a_process_stops_the_search_and_scores_nothing(tmp_path, monkeypatch):
    executor = _local(tmp_path, monkeypatch)
    scores = _candidates(tmp_path, executor, "tests.search.table:score")
    with pytest.raises(UserError, match=r"data\.val: other content"):
        scores.finish((table.REFUSED,))
    scores.jobs.close()
    assert not (tmp_path / "journal.jsonl").exists()
