"""A working folder belongs to one config and one process; steps add up their time."""

import json

import pytest

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption
from crnas_jax.runtime.workdir import FORMAT, Workdir


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


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose a folder"):
        Workdir(tmp_path / "file").claim({}, "hash")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_an_earlier_format_is_refused(tmp_path):
    config = json.dumps({"format": 1, "hash": "hash", "config": {"seed": 0}})
    (tmp_path / "config.json").write_text(config)
    workdir = Workdir(tmp_path)
    with pytest.raises(UserError) as error:
        workdir.claim({"seed": 0}, "hash")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: format: 1, ")
    assert f"this version works in folders of format {FORMAT}" in message
    assert message.count("\n") == 0
    assert (tmp_path / "config.json").read_text() == config
    # The folder is not reserved after that.
    with pytest.raises(UserError, match="format"):
        Workdir(tmp_path).claim({"seed": 0}, "hash")


def test_results_without_their_config_are_refused(tmp_path):
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UserError, match=r"config\.json: file: missing beside results"):
        Workdir(tmp_path).claim({}, "hash")


def test_a_folder_belongs_to_the_key_that_claimed_it(tmp_path):
    workdir = Workdir(tmp_path)
    assert not workdir.belongs_to("one")
    workdir.claim({"seed": 0}, "one")
    workdir.release()
    assert workdir.belongs_to("one")
    assert not workdir.belongs_to("other")


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"train/result.json: json"):
        Workdir(tmp_path).finished("train")


def test_no_step_begins_after_a_request_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped, match="train is not begun"):
        Workdir(tmp_path).step("train", dict)
    assert Workdir(tmp_path).finished("train") is None


def test_a_step_runs_once_and_adds_up_its_time(tmp_path):
    workdir, calls = Workdir(tmp_path), []

    def fail():
        calls.append("fail")
        raise KeyError

    with pytest.raises(KeyError):
        workdir.step("one", fail)
    spent = tmp_path / "one" / "spent.json"
    spent.write_text(json.dumps({"seconds": 100.0}))

    def run():
        calls.append("run")
        return {"a": 1}

    for _ in range(2):
        result = workdir.step("one", run)
        assert workdir.finished("one") == result
    assert calls == ["fail", "run"]
    assert (result["a"], result["format"]) == (1, FORMAT)
    assert result["seconds"] >= 100
    assert not spent.exists()
