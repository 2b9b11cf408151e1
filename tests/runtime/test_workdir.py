"""A working folder belongs to one config and one process; steps add up their time."""

import json

import pytest

from crnas_jax.errors import UserError
from crnas_jax.runtime.workdir import Workdir


def test_a_second_process_is_refused(tmp_path):
    first = Workdir(tmp_path)
    first.claim({}, "hash")
    with pytest.raises(UserError, match="another process is working in it"):
        Workdir(tmp_path).claim({}, "hash")
    first.release()
    second = Workdir(tmp_path)
    second.claim({}, "hash")
    second.release()


def test_another_config_is_refused_and_nothing_is_overwritten(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.claim({"seed": 0}, "one")
    workdir.release()
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match="another config"):
        Workdir(tmp_path).claim({"seed": 1}, "other")
    assert (tmp_path / "config.json").read_text() == before


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose a folder"):
        Workdir(tmp_path / "file").claim({}, "hash")
    assert (tmp_path / "file").read_text() == "mine"


def test_spoilt_results_are_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"train/result.json: json"):
        Workdir(tmp_path).finished("train")


def test_a_step_runs_once_and_adds_up_its_time(tmp_path):
    workdir, calls = Workdir(tmp_path), []

    def fail():
        calls.append("fail")
        raise KeyError

    with pytest.raises(KeyError):
        workdir.step("one", fail)
    spent = tmp_path / "one" / "spent.json"
    spent.write_text(json.dumps({"seconds": 100.0}))

    def run(given):
        calls.append(("run", given))
        return {"a": 1}

    for _ in range(2):
        result = workdir.step("one", run, needs=lambda: calls.append("needs") or 5)
    assert calls == ["fail", "needs", ("run", 5)]
    assert result["a"] == 1
    assert result["seconds"] >= 100
    assert not spent.exists()
