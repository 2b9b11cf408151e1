"""Checkpoints: the latest that loads is restored, damaged ones are moved aside."""

import logging
import shutil

import jax.numpy as jnp
import pytest
from orbax.checkpoint import v1 as ocp

from crnas_jax.checkpoint import Checkpoints, load_variables, save_variables
from crnas_jax.errors import UserError


def _state(value):
    return {"a": jnp.full((3,), float(value)), "step": jnp.int32(value)}


def test_a_damaged_checkpoint_is_passed_over_and_saving_goes_on(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, _state(step))
    checkpoints.close()
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
    checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.steps() == [15, 20]
    assert int(again.restore_latest(_state(0))["step"]) == 21
    again.close()


def test_an_empty_folder_restores_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.restore_latest(_state(0)) is None
    checkpoints.close()


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
    with Checkpoints(whole) as checkpoints:
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
        with Checkpoints(folder) as checkpoints:
            restored = checkpoints.restore_latest(_state(0))
            # Step 20 loads without some of its files; the values are right in either case.
            assert int(restored["step"]) in (10, 20), path
            assert float(restored["a"][0]) == int(restored["step"]), path
            checkpoints.save(50, _state(50))
        with Checkpoints(folder) as checkpoints:
            assert int(checkpoints.restore_latest(_state(0))["step"]) == 50


def test_a_checkpoint_with_changed_bytes_is_not_restored(tmp_path):
    """A flipped bit would otherwise load as another value."""
    with Checkpoints(tmp_path) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, _state(step))
    files = [path for path in (tmp_path / "20").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore_latest(_state(0))["step"]) == 10


def test_a_folder_of_damaged_checkpoints_is_refused_and_left_alone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, _state(10))
    for path in (tmp_path / "10").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="none of steps"):
        checkpoints.restore_latest(_state(0))
    assert (tmp_path / "10").is_dir()


def test_a_machine_fault_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(24, "Too many open files")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, _state(10))
        with monkeypatch.context() as patch:
            patch.setattr(ocp.training.Checkpointer, "load", fail)
            with pytest.raises(OSError, match="Too many"):
                checkpoints.restore_latest(_state(0))
        assert int(checkpoints.restore_latest(_state(0))["step"]) == 10
