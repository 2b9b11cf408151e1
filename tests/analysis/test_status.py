"""How far a run is, from its folder."""

import json
import os
import subprocess
import sys
import time

import pytest
import run_folders
from helpers import ENVIRONMENT, ROOT

from crnas_jax.analysis import status
from crnas_jax.analysis.record import Record


def _silent_for(path, seconds):
    """Make all files of a folder look as old."""
    then = time.time() - seconds
    for file in path.rglob("*"):
        os.utime(file, (then, then))


def test_a_run_in_its_third_step_says_what_it_does(tmp_path):
    path = run_folders.in_third_step(tmp_path / "run")
    _silent_for(path, 5)
    now = status.status(Record.open(path))
    assert now["state"] == "working"
    assert now["step"].startswith("finalists/")
    shares = {part["text"].partition(",")[0]: part["share"] for part in now["parts"]}
    assert shares["stage supernet"] == shares["stage search"] == 1
    # One of at most five finalists, and half of the next.
    assert shares["up to 5 finalists"] == pytest.approx(1.5 / 5)
    assert shares["operation supernet"] == 0
    assert 0 < now["share"] < 0.5
    assert now["seconds_left"] > 0
    assert any("found depths" in line for line in now["found"])
    text = status.text(Record.open(path))
    assert ": step 77/154, 1 min 30 s left" in text
    _silent_for(path, 5000)
    assert "no sign of life for 1 h 23 min" in status.text(Record.open(path))
    run_folders.change(path, "progress.json", lambda content: content.update(ended="2999"))
    stopped = Record.open(path)
    assert status.status(stopped)["seconds_left"] is None
    assert "stopped, last sign of life" in status.text(stopped)
    assert "step 77/154, stopped" in status.text(stopped)


def test_what_follows_or_comes_between_steps_is_told_apart(tmp_path):
    path = run_folders.search_alone(tmp_path / "run")
    assert status.status(Record.open(path))["state"] == "working"
    _silent_for(path, 5000)
    assert status.status(Record.open(path))["state"] == "silent"
    (path / "progress.json").write_text('{"ended": "2999"}')
    now = status.status(Record.open(path))
    assert (now["state"], now["seconds_left"], now["progress"]) == ("ended", None, {})
    # A study after a finished run is what it does now.
    finished = run_folders.copy(tmp_path / "finished")
    folder = finished / "ranking" / "1-2-3-2"
    folder.mkdir(parents=True)
    (folder / "key.json").write_text('{"begun": "2999-01-01T00:00:00+00:00"}')
    now = status.status(Record.open(finished))
    assert (now["state"], now["step"]) == ("working", "ranking/1-2-3-2")
    # One that was begun before the end, and given up, is not.
    (folder / "key.json").write_text('{"begun": "1999-01-01T00:00:00+00:00"}')
    assert status.status(Record.open(finished))["state"] == "finished"


def test_a_finished_run_shows_its_table(tmp_path):
    now = status.status(Record.open(run_folders.copy(tmp_path / "run")))
    assert now["state"] == "finished"
    assert {part["share"] for part in now["parts"]} == {1}
    assert now["seconds_left"] is None
    assert now["found"][0].startswith("returned: ")


def test_looking_needs_no_jax_and_changes_nothing(tmp_path):
    path = run_folders.in_third_step(tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    code = (
        "import sys\nfrom crnas_jax import cli\ncli.prepare_process('status')\n"
        f"status = cli.main(['status', '--workdir={path}', '--json'])\n"
        "assert not {'jax', 'scipy.stats', 'matplotlib'} & set(sys.modules)\nsys.exit(status)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["state"] == "working"
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
