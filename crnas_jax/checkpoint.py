"""Orbax checkpoints: the state of a running training, and the weights of a finished network."""

import contextlib
import hashlib
import io
import logging
import os
import pathlib
import re
import shutil
import warnings

import jax
import numpy as np
from jaxtyping import PyTree
from orbax.checkpoint import StandardCheckpointer
from orbax.checkpoint import v1 as ocp

from crnas_jax.errors import UserError
from crnas_jax.parallel import hosts
from crnas_jax.parallel.supervisor import waiting
from crnas_jax.runtime import ownership, team
from crnas_jax.runtime.files import file_sha256, replacing

_DIGEST = ".sha256"
# What a damaged checkpoint raises; other errors of the system are the machine's.
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
# What TensorStore says where the operating system refuses to write.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Checkpoints:
    """The checkpoints of one training; the latest two stay.

    Each is saved by a call of its own. Orbax's manager of several ends a save in a thread, which
    waits for all hosts even where writing has failed on one, while the others wait for that one.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Name the folder; it need not exist yet."""
        self._folder = pathlib.Path(folder).absolute()

    def save(self, step: int, state: PyTree) -> None:
        """Save the state unless this step is saved.

        Raises:
          UserError: it cannot be written; earlier checkpoints stay.
        """
        with _writing(self._folder, f"checkpoint of step {step}"):
            if team.decide(self._is_saved, step):
                return
            with waiting(f"the checkpoint of step {step}"):
                ocp.save(self._folder / str(step), state)
            team.decide(self._finish, step)

    def _is_saved(self, step):
        """Return whether the step is saved; if not, remove what interrupted saves have left."""
        ownership.require(self._folder)
        if step in self.steps():
            return True
        for rest in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(rest)
        return False

    def _finish(self, step):
        """Write the digest and remove all but the latest two steps."""
        with replacing(self._folder / f"{step}{_DIGEST}") as file:
            file.write(_content(self._folder / str(step)).encode())
        for old in self.steps()[:-2]:
            shutil.rmtree(self._folder / str(old))
        for digest in self._folder.glob(f"*{_DIGEST}"):
            if not (self._folder / digest.stem).exists():
                digest.unlink()

    def steps(self) -> list[int]:
        """Return the steps that can be restored, ascending."""
        return team.decide(
            lambda: sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdigit())
        )

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """Return the latest state that loads, with the layout of `like`; None if none was saved.

        Damaged checkpoints are moved aside once an earlier one loads.

        Raises:
          UserError: there are checkpoints, but none loads.
        """
        abstract, damaged = jax.tree.map(_abstract, like), []
        for step in reversed(self.steps()):
            state, problem = self._try(step, abstract)
            # Where it does not load on one host, none goes on from it.
            problems = [problem for problem in team.gather(problem) if problem]
            if problems:
                logging.warning("checkpoint of step %d does not load: %s", step, problems[0])
                damaged.append(step)
                continue
            # Left in their places they would block saving their steps and those before them.
            if damaged:
                team.decide(self._move_aside, damaged)
            return state
        if damaged:
            raise UserError(
                self._folder,
                "checkpoints",
                f"none of steps {damaged} loads",
                "restore one, or remove the folder to train from the start",
            )
        return None

    def _try(self, step, abstract):
        """Return a step's state and "", or None and why it does not load."""
        if team.decide(self._has_changed, step):
            return None, "its content has changed"
        try:
            with _quiet(), waiting(f"the checkpoint of step {step}"):
                return ocp.load(self._folder / str(step), abstract), ""
        except Exception as error:
            if hosts.may_come_from_others(error) or _is_machine_fault(error):
                raise
            return None, _first_line(error)

    def _has_changed(self, step):
        """Return whether bytes changed; Orbax would load them as other numbers."""
        digest = self._folder / f"{step}{_DIGEST}"
        # A kill between the two leaves a checkpoint without its digest.
        try:
            return digest.exists() and digest.read_text() != _content(self._folder / str(step))
        except _GONE:
            return True

    def _move_aside(self, steps):
        ownership.require(self._folder)
        for step in steps:
            aside = self._folder / f"unreadable-{step}"
            while aside.exists():
                aside = aside.with_name(aside.name + "-again")
            (self._folder / str(step)).rename(aside)


def _content(folder):
    """Return a digest over all files of a checkpoint."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sha.update(str(path.relative_to(folder)).encode())
            sha.update(file_sha256(path))
    return sha.hexdigest()


def _is_machine_fault(error):
    """Return whether the machine (memory, open files, disk) failed rather than the checkpoint."""
    return isinstance(error, MemoryError | OSError) and not isinstance(error, _GONE)


def _abstract(leaf):
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
    )


def save_variables(folder: str | pathlib.Path, variables: PyTree) -> None:
    """Write a network's {"params", "batch_stats"}, replacing what is there.

    Arrays go to disk from the host: with shardings of devices they would load on the same devices
    alone. Orbax (v0 and v1) and Flax read the folder. A digest of its content is beside it.

    Of several hosts the primary writes, and all have to call this.

    Raises:
      UserError: it cannot be written, or another kind of folder is there; what was there stays.
    """
    folder = pathlib.Path(folder).absolute()
    variables, fresh = hosts.fetch(variables), folder.with_name(folder.name + ".new")
    with _writing(folder, "variables"):
        team.decide(_make_room, folder, fresh)
        # Orbax writes NumPy arrays on the primary, but counts its calls on all hosts.
        with waiting("the finished weights"), StandardCheckpointer() as checkpointer:
            checkpointer.save(fresh, variables)
        team.decide(_replace, folder, fresh)


def _make_room(folder, fresh):
    """Remove what an interrupted save has left."""
    ownership.require(folder)
    if folder.exists() and not _is_checkpoint(folder):
        raise UserError(folder, "variables", "something else is there", "name another folder")
    for rest in (fresh, *folder.parent.glob(f"{fresh.name}.orbax-checkpoint-tmp*")):
        shutil.rmtree(rest, ignore_errors=True)


def _replace(folder, fresh):
    content = _content(fresh)
    _digest_of(folder).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    with replacing(_digest_of(folder)) as file:
        file.write(content.encode())


def load_variables(folder: str | pathlib.Path, like: PyTree | None = None) -> PyTree:
    """Read what `save_variables` wrote, as NumPy arrays whatever devices there are.

    Args:
      folder: folder that was given there.
      like: shapes that the weights must have; None to take whatever is there.

    Raises:
      UserError: there is no such checkpoint, its content has changed, it belongs to another
        network, or a value is not finite.
    """
    like = layout(folder) if like is None else like
    with _reading(folder) as path:
        digest = _digest_of(path)
        # Weights of earlier versions have none.
        if digest.exists() and digest.read_text() != _content(path):
            raise ValueError("its content has changed since it was written")
        _require_shapes(layout(path), like)
        # To read arrays on the host takes a template of host arrays: no memory is touched.
        host = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        variables = ocp.load(path, host)
        for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            if not np.isfinite(np.asarray(leaf, np.float32)).all():
                raise ValueError(f"{_name(leaf_path)} is not finite")
        return variables


def content_digest(folder: str | pathlib.Path) -> str:
    """Return the digest of what `save_variables` wrote: the stored one where there is one."""
    folder = pathlib.Path(folder).absolute()
    stored = _digest_of(folder)
    return stored.read_text() if stored.exists() else _content(folder)


def layout(folder: str | pathlib.Path) -> PyTree:
    """Return the shapes of what `save_variables` wrote.

    Raises:
      UserError: there is no such checkpoint.
    """
    with _reading(folder) as path:
        return ocp.metadata(path).metadata


def _require_shapes(stored, like):
    """Raise ValueError that names the first tensor of another shape; Orbax names none."""
    shapes, expected = (
        {_name(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (stored, like)
    )
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            problem = f"{name}: shape {shapes.get(name)}, the network has {expected.get(name)}"
            raise ValueError(problem)


def _name(path):
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _is_checkpoint(folder):
    return any((folder / name).exists() for name in ("_METADATA", "_CHECKPOINT_METADATA"))


def _digest_of(folder):
    return folder.with_name(folder.name + _DIGEST)


@contextlib.contextmanager
def _reading(folder):
    """Yield the absolute path; whatever reading it raises becomes a UserError."""
    path = pathlib.Path(folder).absolute()
    if not path.is_dir():
        raise UserError(
            folder, "checkpoint", "missing", "remove the result.json beside it and train again"
        )
    try:
        with _quiet():
            yield path
    except Exception as error:
        if hosts.may_come_from_others(error):
            raise
        raise UserError(
            folder,
            "checkpoint",
            f"does not load: {_first_line(error)}",
            "restore it, or remove it and the result.json beside it and train again",
        ) from error


@contextlib.contextmanager
def _writing(folder, what):
    """Turn what a failed save raises into a UserError: a full disk has many faces in Orbax."""
    try:
        with _quiet():
            yield
    except Exception as error:
        if hosts.may_come_from_others(error):
            raise
        told_by_disk = isinstance(error, OSError) or _OS_ERROR.search(str(error))
        if not told_by_disk and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            folder,
            what,
            f"cannot be written: {_first_line(error)}",
            "make room or lift the limit, then give the same command again",
        ) from error


@contextlib.contextmanager
def _quiet():
    """Silence what Orbax logs, warns and prints: our errors say what matters, in one line.

    The tracebacks of its threads are hundreds of lines when a disk is full.
    """
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error):
    number = _OS_ERROR.search(str(error))
    if number:  # what TensorStore says is some lines long
        return os.strerror(int(number[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
