"""Checkpoints: the latest that loads is restored, damaged ones are moved aside."""

import logging
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT, Pair, change_a_byte
from orbax.checkpoint import v1 as ocp

from crnas_jax.checkpoint import Checkpoints, load_variables, save_variables
from crnas_jax.errors import UserError
from crnas_jax.parallel.mesh import make_mesh, replicated
from crnas_jax.runtime import team


def _state(value):
    return {"a": jnp.full((3,), float(value)), "step": jnp.int32(value)}


def test_a_damaged_checkpoint_is_passed_over_and_saving_goes_on(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, _state(step))
    for path in (tmp_path / "20").rglob("*"):
        if path.is_file() and path.parent != tmp_path / "20":
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        restored = checkpoints.restore_latest(_state(0))
    assert int(restored["step"]) == 10
    assert "20" in caplog.text
    for step in (15, 20):
        checkpoints.save(step, _state(step + 1))
    again = Checkpoints(tmp_path)
    assert again.steps() == [15, 20]
    assert int(again.restore_latest(_state(0))["step"]) == 21


def test_an_empty_folder_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.restore_latest(_state(0)) is None


def test_variables_round_trip_and_missing_ones_are_refused(tmp_path):
    for value in (1, 2):
        save_variables(tmp_path / "v", {"params": _state(value)})
    loaded = load_variables(tmp_path / "v", {"params": _state(0)})
    assert float(loaded["params"]["a"][0]) == 2
    with pytest.raises(UserError, match="missing"):
        load_variables(tmp_path / "w", {"params": _state(0)})
    with pytest.raises(UserError, match="checkpoint"):
        load_variables(tmp_path / "v", {"params": {"b": jnp.zeros(1)}})


def _paths(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


def test_an_earlier_checkpoint_is_restored_whatever_file_is_missing(tmp_path):
    """Deletion is not atomic: any file or folder of a step may already be missing."""
    whole = tmp_path / "whole"
    checkpoints = Checkpoints(whole)
    for step in (10, 20):
        checkpoints.save(step, _state(step))
    for index, path in enumerate(_paths(whole / "20")):
        folder = tmp_path / str(index)
        shutil.copytree(whole, folder)
        missing = folder / "20" / path
        shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
        (folder / "30.orbax-checkpoint-tmp").mkdir()  # a save that a kill cut short
        (folder / "40").mkdir()  # deletion cut short
        (folder / "unreadable-20").mkdir()
        (folder / "unreadable-20" / "rest").write_text("from an earlier restore")
        checkpoints = Checkpoints(folder)
        restored = checkpoints.restore_latest(_state(0))
        # Step 20 loads without some of its files; the values are right in either case.
        assert int(restored["step"]) in (10, 20), path
        assert float(restored["a"][0]) == int(restored["step"]), path
        checkpoints.save(50, _state(50))
        checkpoints = Checkpoints(folder)
        assert int(checkpoints.restore_latest(_state(0))["step"]) == 50


def test_a_checkpoint_with_changed_bytes_is_not_restored(tmp_path):
    """A flipped bit would otherwise load as another value."""
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, _state(step))
    change_a_byte(tmp_path / "20")
    checkpoints = Checkpoints(tmp_path)
    assert int(checkpoints.restore_latest(_state(0))["step"]) == 10


def test_a_folder_of_damaged_checkpoints_is_refused_and_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, _state(10))
    for path in (tmp_path / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(UserError, match="none of steps"):
        checkpoints.restore_latest(_state(0))
    assert (tmp_path / "10").is_dir()


def test_a_save_that_fails_ends_in_one_line_and_the_rerun_finishes(tmp_path):
    """The limit of a file's size stands for a full disk."""
    state = {"a": jnp.arange(1e6), "step": jnp.int32(1)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state)
    save_variables(tmp_path / "variables", state)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        for save in (
            lambda: checkpoints.save(2, state),
            lambda: save_variables(tmp_path / "variables", {"b": state["a"]}),
        ):
            with pytest.raises(UserError, match="cannot be written: File too large") as error:
                save()
            assert "\n" not in str(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.steps() == [1]
    assert set(load_variables(tmp_path / "variables")) == {"a", "step"}
    checkpoints.save(2, state)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    np.testing.assert_array_equal(checkpoints.restore_latest(state)["a"], state["a"])
    assert checkpoints.steps() == [1, 2]
    (tmp_path / "variables.newest").mkdir()  # somebody's own
    save_variables(tmp_path / "variables", {"b": state["a"]})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoints", "variables", "variables.sha256", "variables.newest"}


FULL = """
import resource, sys
import jax.numpy as jnp
from crnas_jax import cli
from crnas_jax.checkpoint import Checkpoints
from crnas_jax.commands.command import Command

folder, limit = sys.argv[1:]
sys.argv[1:] = []

def run(values):
    checkpoints = Checkpoints(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    checkpoints.save(2, {"a": jnp.arange(1e5), "b": jnp.ones(9)})

cli.load = lambda name: Command("", "", lambda values, arguments: None, run)
cli.script("fill")
"""


@pytest.mark.parametrize("limit", [200, 8192])
def test_a_process_on_a_full_disk_ends_with_one_line(tmp_path, limit):
    """Whichever file does not fit, and whatever the threads of Orbax say about it."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "checkpoints"), str(limit)]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert "checkpoint of step 2: cannot be written: File too large; make room" in line


READ = """
import pathlib, sys
import numpy as np
import orbax.checkpoint as v0
from flax.training import checkpoints
from orbax.checkpoint import v1 as ocp
from crnas_jax.checkpoint import load_variables
new, old = map(pathlib.Path, sys.argv[1:])
# The README's lines, Orbax v0 and Flax on the same path; folders of earlier versions by ours.
trees = [ocp.load(new), v0.StandardCheckpointer().restore(new)]
trees += [checkpoints.restore_checkpoint(str(new), None), load_variables(new), load_variables(old)]
for tree in trees:
    np.testing.assert_array_equal(tree["params"]["a"], np.arange(6.0))
"""


def test_weights_saved_on_eight_devices_load_on_one(tmp_path):
    mesh = make_mesh(8, 8)
    variables = jax.device_put({"params": {"a": jnp.arange(6.0)}}, replicated(mesh))
    save_variables(tmp_path / "new", variables)
    ocp.save(tmp_path / "old", variables)  # as earlier versions did
    command = [sys.executable, "-c", READ, str(tmp_path / "new"), str(tmp_path / "old")]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="photos: variables: something else is there"):
        save_variables(folder, {"a": jnp.zeros(2)})
    assert (folder / "holiday.jpg").read_bytes() == b"mine"


def test_finished_weights_with_changed_bytes_or_values_are_refused(tmp_path):
    """Whatever byte of the largest file is changed; without a digest, as in earlier versions."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "v"
    save_variables(folder, {"params": {"a": rng.standard_normal(999).astype(np.float32)}})
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    content = largest.read_bytes()
    for position in rng.integers(len(content), size=20):
        changed = bytearray(content)
        changed[position] ^= 1
        largest.write_bytes(changed)
        with pytest.raises(UserError, match="its content has changed"):
            load_variables(folder)
    save_variables(folder, {"params": {"a": np.array([1.0, np.inf], np.float32)}})
    with pytest.raises(UserError, match="params/a is not finite"):
        load_variables(folder)
    (tmp_path / "v.sha256").unlink()
    with pytest.raises(UserError, match="params/a is not finite"):
        load_variables(folder)
    like = {"params": {"a": jnp.zeros(3)}}
    with pytest.raises(UserError, match=r"params/a: shape \(2,\), the network has \(3,\)"):
        load_variables(folder, like)


def test_a_machine_fault_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(24, "Too many open files")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, _state(10))
    with monkeypatch.context() as patch:
        patch.setattr(ocp, "load", fail)
        with pytest.raises(OSError, match="Too many"):
            checkpoints.restore_latest(_state(0))
    assert int(checkpoints.restore_latest(_state(0))["step"]) == 10


def test_a_wait_for_a_lost_host_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    """Orbax tells it as a TimeoutError, which Python has among the errors of files."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, _state(10))

    def wait(*_):
        raise TimeoutError("Timeout waiting at barrier 'save'")

    for name, save_or_load in (
        ("save", lambda: checkpoints.save(20, _state(20))),
        ("load", lambda: checkpoints.restore_latest(_state(0))),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(ocp, name, wait)
            patch.setattr(team, "_team", Pair(0, []))
            with pytest.raises(TimeoutError, match="barrier"):
                save_or_load()
    assert int(checkpoints.restore_latest(_state(0))["step"]) == 10
