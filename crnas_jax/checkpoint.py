"""Orbax checkpoints: of a running training, and of a finished detector for downstream Flax code."""

import contextlib
import hashlib
import logging
import pathlib
import shutil

import jax
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from crnas_jax.errors import UserError
from crnas_jax.runtime.workdir import replacing

_DIGEST = ".sha256"


class Checkpoints:
    """The checkpoints of one run; the latest two are kept."""

    def __init__(self, folder: str | pathlib.Path):
        self._folder = pathlib.Path(folder).absolute()
        policy = ocp.training.preservation_policies.LatestN(2)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: PyTree) -> None:
        """Saves unless this step is saved."""
        if step in self.steps():
            return
        self._checkpointer.save(step, state)
        if jax.process_index() == 0:
            with replacing(self._folder / f"{step}{_DIGEST}") as file:
                file.write(_content(self._folder / str(step)).encode())
            for old in self._folder.glob(f"*{_DIGEST}"):
                if not (self._folder / old.stem).exists():
                    old.unlink()

    def steps(self) -> list[int]:
        """Steps that can be restored, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """The latest state that loads, laid out as `like`; None where nothing was saved.

        What is damaged is moved aside, once an earlier step is found to load.

        Raises:
          UserError: there are checkpoints, but none loads.
        """
        abstract, damaged = jax.tree.map(_abstract, like), []
        for step in reversed(self.steps()):
            try:
                self._require_whole(step)
                state = self._checkpointer.load(step, abstract)
            except Exception as error:
                if _is_of_the_machine(error):
                    raise
                logging.warning("checkpoint of step %d does not load: %s", step, error)
                damaged.append(step)
                continue
            # Left in their places they would block saving their steps and those before them.
            for number in damaged:
                self._move_aside(number)
            return state
        if damaged:
            raise UserError(
                self._folder,
                "checkpoints",
                f"none of steps {damaged} loads",
                "restore one, or remove the folder to train from the start",
            )
        return None

    def _require_whole(self, step):
        """Raises ValueError for bytes that changed; Orbax would load them as other numbers."""
        digest = self._folder / f"{step}{_DIGEST}"
        # A kill between the two leaves a checkpoint without its digest.
        if digest.exists() and digest.read_text() != _content(self._folder / str(step)):
            raise ValueError("its content has changed")

    def _move_aside(self, step):
        aside = self._folder / f"unreadable-{step}"
        while aside.exists():
            aside = aside.with_name(aside.name + "-again")
        (self._folder / str(step)).rename(aside)
        self._checkpointer.reload()

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _content(folder):
    """Digest of all files of a checkpoint."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                sha.update(str(path.relative_to(folder)).encode())
                sha.update(hashlib.file_digest(file, "sha256").digest())
    return sha.hexdigest()


def _is_of_the_machine(error):
    """Whether the machine is at fault (memory, open files, disk), not the checkpoint."""
    gone = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
    return isinstance(error, MemoryError | OSError) and not isinstance(error, gone)


def _abstract(leaf):
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or here
    )


def save_variables(folder: str | pathlib.Path, variables: PyTree) -> None:
    """Writes {"params", "batch_stats"} of a network, replacing what is there."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists():
        shutil.rmtree(folder)
    ocp.save(folder, variables)


def load_variables(folder: str | pathlib.Path, like: PyTree | None = None) -> PyTree:
    """Reads what `save_variables` wrote.

    Args:
      folder: as given there.
      like: the layout it must have (shapes without a sharding: on the first device); whatever is
        there when None.

    Raises:
      UserError: there is no such checkpoint, or it is another network's.
    """
    like = layout(folder) if like is None else like
    with _naming(folder) as path:
        return ocp.load(path, jax.tree.map(_abstract, like))


def layout(folder: str | pathlib.Path) -> PyTree:
    """Shapes of what `save_variables` wrote.

    Raises:
      UserError: there is no such checkpoint.
    """
    with _naming(folder) as path:
        return ocp.metadata(path).metadata


@contextlib.contextmanager
def _naming(folder):
    """The absolute path; whatever reading it raises becomes a UserError."""
    path = pathlib.Path(folder).absolute()
    if not path.is_dir():
        raise UserError(
            folder, "checkpoint", "missing", "remove the result.json beside it and train again"
        )
    try:
        yield path
    except Exception as error:
        raise UserError(
            folder,
            "checkpoint",
            f"does not load: {type(error).__name__}: {error}"[:300],
            "restore it, or remove it and the result.json beside it and train again",
        ) from error
