"""Files that are written whole or not at all, and digests of what they hold.

On a process that is not the primary (`runtime.team`) what writes here does nothing.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from crnas_jax.errors import UserError
from crnas_jax.runtime.ownership import may_write


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path`, flushed to disk, when the block ends.

    Where the block fails, `path` stays as it was.

    Raises:
      UserError: the working folder belongs to another run now (`ownership`).
    """
    if not may_write(path):
        with open(os.devnull, "wb") as file:
            yield file
        return
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


def append(path: pathlib.Path, text: str) -> None:
    """Append text to a file, flushed to disk; errors as of `replacing`."""
    if not may_write(path):
        return
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def whole_lines(path: pathlib.Path, repair: bool) -> list[bytes]:
    """Return the lines of a file that `append` has written whole; none where there is no file.

    Args:
      path: the file.
      repair: whether a torn last line, of a process that died while writing, is dropped there too.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content and repair:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.splitlines()


def as_path(path):
    """Return the `pathlib.Path` of a name; a path in an archive (`records.archives`) as it is."""
    return pathlib.Path(path) if isinstance(path, str | os.PathLike) else path


def exists(path) -> bool:
    """Tell whether there is a file or folder, links followed."""
    try:
        return as_path(path).exists()
    except (OSError, ValueError):  # a name that is too long, or no name
        return False


def require_regular(path: str | os.PathLike) -> None:
    """Raise OSError unless a path is a regular file, links followed.

    To open a pipe would wait for ever.
    """
    path = as_path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_regular(path: str | os.PathLike) -> bytes:
    """Return the content of a regular file; errors as of `require_regular`."""
    require_regular(path)
    return as_path(path).read_bytes()


def write_json(path: pathlib.Path, value, indent: int | None = 1) -> None:
    """Write a JSON file as `write`; `indent` as in `json.dumps`."""
    write(path, json.dumps(value, indent=indent, allow_nan=False).encode())


def write(path: pathlib.Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    if not may_write(path):
        return
    if path.exists() and not path.is_file():  # replacing a device would remove it
        raise UserError(path, "file", "it is there, and is no regular file", "name another one")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            path, "file", error.strerror or str(error), "name a file that can be written"
        ) from error


def read_json(path: pathlib.Path, remedy: str = "remove it; its step is then done again"):
    """Read a file that `write_json` wrote.

    Raises:
      UserError: the file is missing or holds no JSON; the message ends with `remedy`.
    """
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError) as error:
        raise UserError(path, "json", str(error), remedy) from error


def file_sha256(path: str | os.PathLike) -> bytes:
    """Return the SHA-256 of a file's content."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digest(*parts: str | bytes) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 over `parts` and their lengths."""
    sha = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:16]
