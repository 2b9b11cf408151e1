"""Orbax checkpoints: of a running training, and of a finished detector for downstream Flax code."""

import contextlib
import logging
import pathlib
import shutil

import jax
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from crnas_jax.errors import UserError


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
        if step not in self.steps():
            self._checkpointer.save(step, state)

    def steps(self) -> list[int]:
        """Steps that can be restored, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def restore_latest(self, like: PyTree) -> PyTree | None:
        """The latest state that loads, laid out as `like`; None where none does."""
        abstract = jax.tree.map(_abstract, like)
        for step in reversed(self.steps()):
            try:
                return self._checkpointer.load(step, abstract)
            except Exception as error:
                # Left in its place it would block saving this step and those before it.
                aside = self._folder / f"unreadable-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self._folder / str(step)).rename(aside)
                self._checkpointer.reload()
                logging.warning(
                    "checkpoint of step %d does not load (%s); trying an earlier one", step, error
                )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error) -> None:
        self.close()


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
        raise UserError(folder, "checkpoint", "missing", "train this network first")
    try:
        yield path
    except Exception as error:
        raise UserError(
            folder,
            "checkpoint",
            f"does not load: {type(error).__name__}: {error}"[:300],
            "restore it, or remove the folder it stands in and train again",
        ) from error
