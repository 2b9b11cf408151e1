"""Encoded images, wherever they lie: in a file, in an archive, or in a record."""

import functools
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from crnas_jax.data import images
from crnas_jax.runtime.files import as_path, file_sha256

_SAMPLE_BYTES = 4096


class StoredImage(Protocol):
    """An encoded image.

    Attributes:
      name: path, or what else names it in messages.
      num_bytes: length of its encoded content.
    """

    name: str
    num_bytes: int

    def header(self, max_pixels: int) -> images.Header:
        """Check that it can be decoded; return its header. Errors as of `images.check`."""

    def read(self, max_pixels: int) -> tuple[np.ndarray, images.Header]:
        """Decode it as it is stored. Errors as of `images.read_stored`."""

    def sample(self) -> bytes:
        """Return a short part of the content, the same part of equal contents."""

    def digest(self) -> bytes:
        """Return the SHA-256 of the content."""


class ImageFile:
    """An image file: a `StoredImage`."""

    def __init__(self, path: str | os.PathLike):
        """Name the file; it is read later."""
        self.name, self.path = str(path), path

    @functools.cached_property
    def num_bytes(self) -> int:
        """Size of the file. Errors as of `images.read_stored`."""
        images.require_regular(self.path)
        return as_path(self.path).stat().st_size

    def header(self, max_pixels: int) -> images.Header:
        """See `images.check`."""
        return images.check(self.path, max_pixels)

    def read(self, max_pixels: int) -> tuple[np.ndarray, images.Header]:
        """See `images.read_stored`."""
        return images.read_stored(self.path, max_pixels)

    def content(self) -> bytes:
        """Return the encoded image. Errors as of `images.read_stored`."""
        return images.content_of(self.path)

    def sample(self) -> bytes:
        """Return the bytes in the middle of the file."""
        with as_path(self.path).open("rb") as file:
            file.seek(self.num_bytes // 2)
            return file.read(_SAMPLE_BYTES)

    def digest(self) -> bytes:
        """Return the SHA-256 of the file."""
        return file_sha256(self.path)


class ImageFiles(Sequence):
    """The images of a split that lie in files."""

    def __init__(self, paths: Sequence):
        """Name the files."""
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> ImageFile:
        return ImageFile(self.paths[index])
