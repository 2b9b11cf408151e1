"""Files inside archives, as if these were unpacked: paths with the methods that readers use.

A zip or tar file is read at any place. A tar.gz has to be read from its beginning: members are fast
in the order in which they stand there (`ArchivePath.position`), and nothing is written to disk.
"""

import errno
import gzip
import io
import os
import pathlib
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol

from crnas_jax.errors import UserError
from crnas_jax.runtime.progress import Progress

_REMEDY = "download it again"
_BLOCK = 2**20


class Archive(Protocol):
    """The files of an archive."""

    def members(self) -> Mapping[str, tuple[int, int]]:
        """Return position and number of bytes of each file by name."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""


class _Zip:
    def __init__(self, path):
        self._file = zipfile.ZipFile(path)

    def members(self):
        infos = (info for info in self._file.infolist() if not info.is_dir())
        return {info.filename: (0, info.file_size) for info in infos}

    def read(self, name):
        return self._file.read(name)


class _Tar:
    """A tar file; files in tar files inside it are its files too, in a folder of their name."""

    def __init__(self, path):
        self._descriptor = os.open(path, os.O_RDONLY)
        with open(path, "rb") as file:
            self._places = dict(self._walk(file, 0, ""))

    def _walk(self, file, start, folder):
        with tarfile.open(fileobj=file, mode="r:") as archive:
            places = {}
            for member in archive:
                if member.islnk() and member.linkname in places:
                    yield folder + member.name, places[member.linkname]
                if not member.isreg():
                    continue
                place = start + member.offset_data
                if member.name.endswith(".tar"):
                    inner = _Part(file, member.offset_data, member.size)
                    name = f"{folder}{member.name.removesuffix('.tar')}/"
                    yield from self._walk(inner, place, name)
                else:
                    places[member.name] = (place, member.size)
                    yield folder + member.name, places[member.name]

    def members(self):
        return {name: (0, size) for name, (_, size) in self._places.items()}

    def read(self, name):
        place, size = self._places[name]
        content = os.pread(self._descriptor, size, place)
        if len(content) != size:
            raise EOFError("it is cut off")
        return content


class _Part(io.RawIOBase):
    """A part of an open file as a file."""

    def __init__(self, file, start, size):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def seekable(self):
        return True

    def readable(self):
        return True

    def tell(self):
        return self._at

    def seek(self, offset, whence=os.SEEK_SET):
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def read(self, size=-1):
        left = max(self._size - self._at, 0)
        self._file.seek(self._start + self._at)
        content = self._file.read(left if size < 0 else min(size, left))
        self._at += len(content)
        return content


class _CompressedTar:
    def __init__(self, path):
        self._path, self._lock, self._stream = path, threading.Lock(), None
        self._names = {}
        progress = Progress(
            f"list of {path}", os.path.getsize(path), unit="byte", beginning="it is compressed"
        )
        with open(path, "rb") as file, gzip.open(file) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                for position, member in enumerate(archive):
                    if member.isreg():
                        self._names[member.name] = (position, member.size)
                    elif member.islnk() and member.linkname in self._names:
                        self._names[member.name] = self._names[member.linkname]
                    progress.update(file.tell())
                    archive.members = []  # they would fill the memory
            while unpacked.read(_BLOCK):  # to its end, where the checksum is
                pass
        progress.close()

    def members(self):
        return self._names

    def read(self, name):
        with self._lock:
            position, _ = self._names[name]
            if self._stream is None or self._next > position:
                self._archive = tarfile.open(self._path, mode="r|gz")  # noqa: SIM115
                self._stream, self._next = iter(self._archive), 0
            for member in self._stream:
                self._next += 1
                self._archive.members = []
                if self._next > position:
                    return self._archive.extractfile(member).read()
            raise EOFError("it is cut off")


class ArchiveTree:
    """The files of a folder, and of archives in it as if they were unpacked there."""

    def __init__(self, folder: str | pathlib.Path, archives: Mapping[str, str]):
        """Read the tables of the archives that are there.

        Args:
          folder: the folder.
          archives: by the name of an archive the folder that its files belong into; "" for none.

        Raises:
          UserError: an archive is damaged.
        """
        self.folder = pathlib.Path(folder)
        self._files: dict[str, tuple[Archive, str, int, int]] = {}
        self._children: dict[str, dict[str, None]] = {}
        for name, inside in archives.items():
            path = self.folder / name
            if not path.is_file():
                continue
            try:
                archive = _open(path)
                members = archive.members()
            except Exception as error:  # zipfile, tarfile and their decoders raise many types
                raise _fault(path, error) from error
            for member, (position, size) in members.items():
                parts = [part for part in (inside + member).split("/") if part not in ("", ".")]
                if ".." not in parts:
                    self._files["/".join(parts)] = (archive, member, position, size)
                    for depth in range(len(parts)):
                        children = self._children.setdefault("/".join(parts[:depth]), {})
                        children[parts[depth]] = None

    @property
    def root(self) -> "ArchivePath":
        """The path of the folder."""
        return ArchivePath(self, "")

    def file(self, name: str) -> tuple[Archive, str, int, int] | None:
        """Return archive, name in it, position and size of a file; None if it is in none."""
        return self._files.get(name)

    def children(self, name: str) -> list[str] | None:
        """Return the names in a folder; None where there is none in archives."""
        children = self._children.get(name)
        return None if children is None else list(children)


def _open(path) -> Archive:
    if path.suffix == ".zip":
        return _Zip(path)
    return _CompressedTar(path) if path.suffix in (".gz", ".tgz") else _Tar(path)


def _fault(path, error):
    problem = f"damaged: {type(error).__name__}: {str(error)[:100]}"
    return UserError(path, "archive", problem, _REMEDY)


class ArchivePath:
    """A file or folder of an `ArchiveTree`: files on disk come first, then those in archives."""

    def __init__(self, tree: ArchiveTree, name: str):
        """Name the path, relative to the tree's folder."""
        self._tree, self._name = tree, name
        self._disk = tree.folder / name

    def __str__(self) -> str:
        return str(self._disk)

    def __truediv__(self, name) -> "ArchivePath":
        joined = os.path.normpath(f"{self._name}/{name}".lstrip("/"))
        return ArchivePath(self._tree, "" if joined == "." else joined)

    def __lt__(self, other) -> bool:
        return self._disk < other._disk

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._disk.name

    @property
    def stem(self) -> str:
        """Last part without its suffix."""
        return self._disk.stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part."""
        return self._disk.suffix

    @property
    def parent(self) -> "ArchivePath":
        """The folder that it is in."""
        return ArchivePath(self._tree, os.path.dirname(self._name))

    @property
    def position(self) -> int:
        """Where it stands in an archive that is read from its beginning; else 0."""
        file = None if self._disk.exists() else self._tree.file(self._name)
        return file[2] if file else 0

    def exists(self) -> bool:
        """Tell whether it is there."""
        return self._disk.exists() or self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Tell whether it is a file."""
        return self._disk.is_file() or self._tree.file(self._name) is not None

    def is_dir(self) -> bool:
        """Tell whether it is a folder."""
        return self._disk.is_dir() or self._tree.children(self._name) is not None

    def iterdir(self) -> Iterator["ArchivePath"]:
        """Yield what is in a folder."""
        on_disk = [path.name for path in self._disk.iterdir()] if self._disk.is_dir() else []
        for name in dict.fromkeys(on_disk + (self._tree.children(self._name) or [])):
            yield self / name

    def stat(self) -> os.stat_result:
        """Return mode and size.

        Raises:
          OSError: it is not there.
        """
        file = self._tree.file(self._name)
        if self._disk.exists() or file is None:
            if self.is_dir():
                return os.stat_result((stat.S_IFDIR, *[0] * 9))
            return self._disk.stat()
        return os.stat_result((stat.S_IFREG, 0, 0, 0, 0, 0, file[3], 0, 0, 0))

    def read_bytes(self) -> bytes:
        """Return the content of a file.

        Raises:
          OSError: it is not there.
          UserError: its archive is damaged.
        """
        file = self._tree.file(self._name)
        if self._disk.exists():
            return self._disk.read_bytes()
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        try:
            return file[0].read(file[1])
        except Exception as error:  # zipfile, tarfile and their decoders raise many types
            raise _fault(self, error) from error

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open a file for reading; errors as of `read_bytes`."""
        del mode
        return io.BytesIO(self.read_bytes())
