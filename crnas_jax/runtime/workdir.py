"""The working folder of a run: which config it belongs to, and which steps are finished."""

import contextlib
import fcntl
import pathlib
import time
from collections.abc import Callable

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption
from crnas_jax.runtime.files import read_json, write_json

# Version of the folder's files. Folders of format 1 hold configs with other field names.
FORMAT = 2
_ANOTHER = "restore it, or choose another --workdir"


class Workdir:
    """A folder that belongs to one config and to one process at a time.

    Every step of the procedure has a subfolder, which holds `result.json` once it is finished.

    Attributes:
      path: path of the folder.
    """

    def __init__(self, path: str | pathlib.Path):
        """Name the folder; nothing is touched before `claim`."""
        self.path = pathlib.Path(path)
        self._lock = None

    def claim(self, fields: dict, key: str) -> None:
        """Reserve the folder for this process and config until `release` or the process ends.

        Args:
          fields: the config, written to `config.json` for readers.
          key: digest of everything that can change a result.

        Raises:
          UserError: another process works here, the folder belongs to another config or format,
            or it cannot be written.
        """
        self._take_lock()
        try:
            self._require_same_config(fields, key)
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

    def _require_same_config(self, fields, key):
        file = self.path / "config.json"
        if not file.exists():
            if (self.path / "journal.jsonl").exists() or any(self.path.glob("*/result.json")):
                raise UserError(file, "file", "missing beside results", _ANOTHER)
            write_json(file, {"format": FORMAT, "hash": key, "config": fields})
            return
        content = _content(file)
        if content.get("format", FORMAT) != FORMAT:
            raise UserError(
                file,
                "format",
                f"{content['format']}, this version works in folders of format {FORMAT}",
                "finish it with the version that began it, or choose another --workdir",
            )
        if content.get("hash") != key:
            raise UserError(
                file,
                "config",
                "this folder belongs to another config or to other data",
                "choose another --workdir",
            )

    def belongs_to(self, key: str) -> bool:
        """Return whether a run with this key, and no other, has worked here."""
        file = self.path / "config.json"
        return file.exists() and _content(file).get("hash") == key

    def release(self) -> None:
        """Let other processes work here."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def finished(self, step: str) -> dict | None:
        """Return the result of a finished step, None before it is finished."""
        path = self.path / step / "result.json"
        return read_json(path) if path.exists() else None

    def step(self, name: str, run: Callable[[], dict]) -> dict:
        """Return the result of a step; call `run` unless the step is finished.

        `seconds` in the result adds up all invocations that ended by themselves or were asked to
        stop; what a killed invocation spent is not known.
        """
        result = self.finished(name)
        if result is not None:
            return result
        interruption.stop_if_requested(f"{name} is not begun")
        spent_file = self.path / name / "spent.json"
        spent = read_json(spent_file)["seconds"] if spent_file.exists() else 0.0
        start = time.monotonic()
        try:
            result = run()
        except Exception:
            with contextlib.suppress(
                UserError
            ):  # on a full disk the first error is the one to tell
                write_json(spent_file, {"seconds": spent + time.monotonic() - start})
            raise
        seconds = round(spent + time.monotonic() - start, 1)
        result = {"format": FORMAT, **result, "seconds": seconds}
        write_json(self.path / name / "result.json", result)
        spent_file.unlink(missing_ok=True)
        return result


def _content(file):
    content = read_json(file, _ANOTHER)
    return content if isinstance(content, dict) else {}
