"""The working folder of a run: whose it is, and which steps of the procedure are finished."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption

FORMAT = 1
_ANOTHER = "restore it, or choose another --workdir"


class Workdir:
    """A folder that belongs to one config and one process at a time.

    Every step of the procedure has a subfolder; its `result.json` is there once it is finished.
    """

    def __init__(self, path: str | pathlib.Path):
        """Names the folder; nothing is touched before `claim`."""
        self.path = pathlib.Path(path)
        self._lock = None

    def claim(self, fields: dict, config_hash: str) -> None:
        """Makes the folder this process's and this config's, until `release` or the process's end.

        Args:
          fields: the config, written to `config.json` for people.
          config_hash: of all that can change a result.

        Raises:
          UserError: another process works here, the folder is another config's, or it cannot be
            written.
        """
        self._take_lock()
        try:
            self._require_own(fields, config_hash)
        except UserError:
            self.release()
            raise

    def _take_lock(self):
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a")
        except OSError as error:
            raise UserError(
                self.path, "--workdir", str(error.strerror), "choose a folder you can write"
            ) from error
        try:
            # The kernel drops the lock when the process ends, however it ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            busy = isinstance(error, BlockingIOError)
            raise UserError(
                self.path,
                "--workdir",
                "another process is working in it" if busy else f"no lock: {error.strerror}",
                "wait for it, or choose another --workdir",
            ) from error

    def _require_own(self, fields, config_hash):
        file = self.path / "config.json"
        if not file.exists():
            if (self.path / "journal.jsonl").exists() or any(self.path.glob("*/result.json")):
                raise UserError(file, "file", "missing beside results", _ANOTHER)
            write_json(file, {"format": FORMAT, "hash": config_hash, "config": fields})
        elif not _is_of(file, config_hash):
            raise UserError(
                file,
                "config",
                "this folder belongs to another config or to other data",
                "choose another --workdir",
            )

    def belongs_to(self, config_hash: str) -> bool:
        """Whether a run of this config, and of no other, has worked here."""
        file = self.path / "config.json"
        return file.exists() and _is_of(file, config_hash)

    def release(self) -> None:
        """Lets other processes work here."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def finished(self, step: str) -> dict | None:
        """What a step wrote when it finished, None before that."""
        path = self.path / step / "result.json"
        return read_json(path) if path.exists() else None

    def step(
        self, name: str, run: Callable[..., dict], needs: Callable[[], object] | None = None
    ) -> dict:
        """The result of a step; calls `run` unless it is finished, with what `needs` returned.

        `seconds` in the result are those of `run`, over all invocations that ended by themselves
        or were asked to stop (what a killed one spent is not known).
        """
        finished = self.finished(name)
        if finished is not None:
            return finished
        given = () if needs is None else (needs(),)
        interruption.stop_if_requested(f"{name} is not begun")
        spent_file = self.path / name / "spent.json"
        spent = read_json(spent_file)["seconds"] if spent_file.exists() else 0.0
        began = time.monotonic()
        try:
            result = run(*given)
        except Exception:
            write_json(spent_file, {"seconds": spent + time.monotonic() - began})
            raise
        seconds = round(spent + time.monotonic() - began, 1)
        result = {"format": FORMAT, **result, "seconds": seconds}
        write_json(self.path / name / "result.json", result)
        spent_file.unlink(missing_ok=True)
        return result


def _is_of(file, config_hash):
    fields = read_json(file, _ANOTHER)
    return isinstance(fields, dict) and fields.get("hash") == config_hash


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path`, whole and on disk, when the block ends.

    Where the block fails `path` stays as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: pathlib.Path, value) -> None:
    """Writes a file whole or not at all.

    Raises:
      UserError: it cannot be written.
    """
    content = json.dumps(value, indent=1, allow_nan=False).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            path, "file", error.strerror or str(error), "name a file that can be written"
        ) from error


def read_json(path: pathlib.Path, remedy: str = "remove it; its step is then done again"):
    """Reads what `write_json` wrote.

    Raises:
      UserError: it is no JSON any more.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(path, "json", str(error), remedy) from error


def digest(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits that stand for `parts`."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:16]
