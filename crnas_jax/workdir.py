"""The working folder of a run: whose it is, and which steps of the procedure are finished."""

import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable

from crnas_jax.errors import UserError

FORMAT = 1


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
        file = self.path / "config.json"
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
        except BlockingIOError as error:
            self.release()
            raise UserError(
                self.path,
                "--workdir",
                "another process is working in it",
                "wait for it, or choose another --workdir",
            ) from error
        if not file.exists():
            write_json(file, {"format": FORMAT, "hash": config_hash, "config": fields})
        elif read_json(file).get("hash") != config_hash:
            self.release()
            raise UserError(
                file,
                "config",
                "this folder belongs to another config or to other data",
                "choose another --workdir",
            )

    def release(self) -> None:
        """Lets other processes work here."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def finished(self, step: str) -> dict | None:
        """What a step wrote when it finished, None before that."""
        path = self.path / step / "result.json"
        return read_json(path) if path.exists() else None

    def step(self, name: str, run: Callable[[], dict], needs: Callable[[], object] = dict) -> dict:
        """The result of a step; runs `needs` and then `run` unless it is finished.

        `seconds` in the result are those of `run`, over all invocations that ended by themselves
        or were asked to stop (what a killed one spent is not known).
        """
        finished = self.finished(name)
        if finished is not None:
            return finished
        needs()
        spent_file = self.path / name / "spent.json"
        spent = read_json(spent_file)["seconds"] if spent_file.exists() else 0.0
        began = time.monotonic()
        try:
            result = run()
        except Exception:
            write_json(spent_file, {"seconds": spent + time.monotonic() - began})
            raise
        seconds = round(spent + time.monotonic() - began, 1)
        result = {"format": FORMAT, **result, "seconds": seconds}
        write_json(self.path / name / "result.json", result)
        spent_file.unlink(missing_ok=True)
        return result


def write_json(path: pathlib.Path, value) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: pathlib.Path):
    """Reads what `write_json` wrote.

    Raises:
      UserError: it is no JSON any more.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            path, "json", str(error), "remove the file; its step is then done again"
        ) from error


def digest(*parts: str | bytes) -> str:
    """Sixteen hexadecimal digits that stand for `parts`."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:16]
