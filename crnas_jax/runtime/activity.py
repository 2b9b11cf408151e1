"""What a process says about itself for who looks at a working folder from outside.

`invocations.jsonl` has a line for each command that worked there, `progress.json` says how far the
work in hand is. Status and report show them; the work depends on neither, and goes on without.
"""

import contextlib
import datetime
import json
import pathlib
import time
from collections.abc import Sequence

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import append
from crnas_jax.runtime.ownership import may_write

INVOCATIONS, PROGRESS = "invocations.jsonl", "progress.json"
# Least time between two looks at the same work, seconds.
_SECONDS = 2.0
_command: list[str] = []
_latest: dict[str, object] = {}
_folder: pathlib.Path | None = None
_written = 0.0


def begin(command: Sequence[str]) -> None:
    """Keep the command line of this process."""
    _command[:] = command


def record(folder: pathlib.Path, **details) -> None:
    """Note in a working folder that this process works there, and its progress from now on.

    Args:
      folder: the working folder.
      **details: what belongs to the line, such as versions and devices.
    """
    global _folder
    _latest.clear()
    row = {"started": now(), "command": list(_command), **details}
    with contextlib.suppress(OSError):
        append(folder / INVOCATIONS, json.dumps(row) + "\n")
        if may_write(folder / PROGRESS):  # that of the command before says "ended"
            (folder / PROGRESS).unlink(missing_ok=True)
    _folder = folder


def release(folder: pathlib.Path) -> None:
    """End what `record` began in a folder, and say so there."""
    global _folder
    if _folder == folder:
        with contextlib.suppress(UserError):  # another run has gone on there
            _write({**_latest, "ended": now()})
        _folder = None


def now() -> str:
    """Return the time, ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def show(is_last: bool = False, **progress) -> None:
    """Say how far the work in hand is; the working folder keeps the latest.

    Args:
      is_last: whether the work is at its end, which is shown whenever it comes.
      **progress: `name` of the work, `unit`, `done`, `total`, `seconds_left` (None while unknown),
        `note`.
    """
    global _written
    _latest.clear()
    _latest.update(time=now(), **progress)
    if _folder is not None and (is_last or time.monotonic() - _written > _SECONDS):
        _written = time.monotonic()
        _write(_latest)


def _write(progress):
    file = _folder / PROGRESS
    if may_write(file):
        temporary = file.with_name(file.name + ".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(progress))
            temporary.replace(file)
