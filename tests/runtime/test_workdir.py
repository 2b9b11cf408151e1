"""A working folder belongs to one data set and one process; steps go by what they read."""

import itertools
import json
import pathlib

import pytest

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption
from crnas_jax.runtime.step_key import StepKey
from crnas_jax.runtime.workdir import FORMAT, Workdir

DATA = {"train": {"annotations": "a", "images": "b"}}


def _key(seed=0, **inputs):
    return StepKey({"seed": seed}, {"train": "a"}, inputs)


def test_a_second_process_is_refused(tmp_path):
    first = Workdir(tmp_path)
    first.claim({}, DATA)
    with pytest.raises(UserError, match="another process is working in it"):
        Workdir(tmp_path).claim({}, DATA)
    first.release()
    second = Workdir(tmp_path)
    second.claim({}, DATA)
    second.release()


@pytest.mark.parametrize("part", ["annotations", "images"])
def test_other_data_are_refused_and_nothing_is_overwritten(tmp_path, part):
    workdir = Workdir(tmp_path)
    workdir.claim({"seed": 0}, DATA)
    workdir.release()
    before = (tmp_path / "config.json").read_text()
    other = {"train": {**DATA["train"], part: "x"}}
    with pytest.raises(UserError, match=f"data.train: its {part} are not those"):
        Workdir(tmp_path).claim({"seed": 1}, other)
    assert (tmp_path / "config.json").read_text() == before


def test_the_config_is_recorded_with_further_splits(tmp_path):
    workdir, val = Workdir(tmp_path), {"val": {"annotations": "c"}}
    workdir.claim({"seed": 0}, DATA)
    workdir.record({"seed": 1}, {**DATA, **val})
    content = json.loads((tmp_path / "config.json").read_text())
    assert content == {"format": FORMAT, "config": {"seed": 1}, "data": {**DATA, **val}}
    workdir.release()


def test_a_file_in_the_place_of_the_folder_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="choose a folder"):
        Workdir(tmp_path / "file").claim({}, DATA)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_an_earlier_format_is_refused(tmp_path):
    config = json.dumps({"format": 2, "hash": "hash", "config": {"seed": 0}})
    (tmp_path / "config.json").write_text(config)
    workdir = Workdir(tmp_path)
    with pytest.raises(UserError) as error:
        workdir.claim({"seed": 0}, DATA)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: format: 2, ")
    assert f"this version works in folders of format {FORMAT}" in message
    assert message.count("\n") == 0
    assert (tmp_path / "config.json").read_text() == config
    # The folder is not reserved after that.
    with pytest.raises(UserError, match="format"):
        Workdir(tmp_path).claim({"seed": 0}, DATA)


def test_results_without_their_config_are_refused(tmp_path):
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UserError, match=r"config\.json: file: missing beside results"):
        Workdir(tmp_path).claim({}, DATA)


def test_a_damaged_result_or_key_is_named(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.step("train", _key(), dict)
    (tmp_path / "train" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"train/result.json: json"):
        workdir.finished("train", _key())
    (tmp_path / "train" / "key.json").write_text("{}")
    with pytest.raises(UserError, match=r"train/key.json: fields: no key"):
        workdir.finished("train", _key())


def test_no_step_begins_after_a_request_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped, match="train is not begun"):
        Workdir(tmp_path).step("train", _key(), dict)
    assert Workdir(tmp_path).finished("train", _key()) is None


def test_a_step_runs_once_and_adds_up_its_time(tmp_path):
    workdir, calls = Workdir(tmp_path), []

    def fail():
        calls.append("fail")
        raise KeyError

    with pytest.raises(KeyError):
        workdir.step("one", _key(), fail)
    spent = tmp_path / "one" / "spent.json"
    spent.write_text(json.dumps({"seconds": 100.0}))

    def run():
        calls.append("run")
        return {"a": 1}

    for _ in range(2):
        result = workdir.step("one", _key(), run)
        assert workdir.finished("one", _key()) == result
    assert calls == ["fail", "run"]
    assert (result["a"], result["format"]) == (1, FORMAT)
    assert result["seconds"] >= 100
    assert not spent.exists()


def _run(workdir, seed, calls):
    def work():
        calls.append(seed)
        (workdir.path / "net" / "weights").write_text(str(seed))
        return {"seed": seed}

    return workdir.step("net", _key(seed), work)["seed"]


def test_what_was_begun_with_another_key_is_set_aside_and_taken_back(tmp_path):
    """Nothing is deleted; a step inside another one has its own key and stays."""
    calls, strict = [], Workdir(tmp_path)
    assert _run(strict, 0, calls) == 0
    strict.step("net/test", _key(), dict)
    with pytest.raises(UserError, match=r"net \(seed 0 -> 1\).*give --redo"):
        _run(strict, 1, calls)
    assert (tmp_path / "net" / "weights").read_text() == "0"
    assert _run(Workdir(tmp_path, redo=True), 1, calls) == 1
    assert (tmp_path / "net" / "test" / "key.json").exists()
    aside = tmp_path / "set_aside" / f"net-{_key(0).digest[:8]}"
    assert (aside / "weights").read_text() == "0"
    # Back to the first key: nothing is repeated, so that nobody has to be asked.
    assert _run(strict, 0, calls) == 0
    assert (tmp_path / "net" / "weights").read_text() == "0"
    assert calls == [0, 1]


class Killed(BaseException):
    pass


def _kill_at(monkeypatch, number):
    """Kill at the given rename of a file, from 1 on; renames of temporary files do not count."""
    rename, count = pathlib.Path.rename, itertools.count(1)

    def kill_or_rename(path, target):
        if path.suffix != ".tmp" and next(count) == number:
            raise Killed
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", kill_or_rename)


@pytest.mark.parametrize("later", [0, 1, 2])
@pytest.mark.parametrize("number", range(1, 7))
def test_a_kill_while_folders_are_exchanged_mixes_nothing(tmp_path, monkeypatch, number, later):
    """Three files go aside, three come back; whatever is asked for then is its own."""
    calls, redo = [], Workdir(tmp_path, redo=True)
    for seed in (0, 1):
        _run(redo, seed, calls)
    with monkeypatch.context() as patch:
        _kill_at(patch, number)
        with pytest.raises(Killed):
            _run(redo, 0, calls)
    for seed in (later, 0, 1):
        assert _run(Workdir(tmp_path, redo=True), seed, calls) == seed
        assert (tmp_path / "net" / "weights").read_text() == str(seed)
    assert calls == [0, 1] + [2] * (later == 2)


def test_results_without_a_key_are_refused(tmp_path):
    workdir = Workdir(tmp_path)
    _run(workdir, 0, [])
    (tmp_path / "net" / "key.json").unlink()
    with pytest.raises(UserError, match=r"net/key.json: file: missing beside result.json"):
        _run(workdir, 0, [])


def test_changes_of_a_key_are_named(tmp_path):
    old = StepKey({"a": 1, "b": (1, 2)}, {"train": "x"}, {"search": "p", "init_from": "w"})
    new = StepKey({"a": 2, "b": [1, 2], "c": 0}, {"train": "y"}, {"search": None})
    assert new.changes(StepKey.from_json(json.loads(json.dumps(old.to_json())))) == [
        "a 1 -> 2",
        "c null -> 0",
        "data train",
        "init_from is another",
    ]
    assert not new.is_known
    assert old.is_known


def test_consent_to_repeat_holds_for_its_config(tmp_path):
    """A run with --redo that was stopped goes on without it, another config asks again."""
    given = Workdir(tmp_path, redo=True)
    given.claim({"seed": 0}, DATA)
    given.record({"seed": 1}, DATA)
    given.release()
    for seed, redo in ((1, True), (0, False)):
        workdir = Workdir(tmp_path)
        workdir.consent({"seed": seed})
        assert workdir.redo == redo
