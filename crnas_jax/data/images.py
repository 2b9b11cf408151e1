"""Read image files and check their headers."""

import os
import pathlib

import cv2
import numpy as np
import PIL.Image

from crnas_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_TAIL_BYTES = 4096  # last bytes of a file, in which a JPEG's end marker is looked for


def read(path: str | os.PathLike, apply_exif: bool = True) -> np.ndarray:
    """Decode an image file.

    Args:
      path: path of the file.
      apply_exif: whether the image is rotated and mirrored as its EXIF tag says; otherwise its
        pixels are returned as stored.

    Returns:
      Pixels, uint8 [H, W, 3] RGB.

    Raises:
      UserError: the file is missing, broken, or not an image.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if apply_exif else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imread(os.fspath(path), flags)
    except cv2.error as error:  # OpenCV refuses images with too many pixels.
        raise unreadable(path) from error
    if image is None:
        raise unreadable(path)
    return image


def is_image(path: pathlib.Path) -> bool:
    """Tell whether a path is a file with an image suffix; hidden files are excluded."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def unreadable(path) -> UserError:
    """Make the error for a file that cannot be read as an image."""
    return UserError(path, "image", "missing or broken", "restore the file or remove its entry")


def possible_sizes(path: str) -> list[tuple[int, int]] | None:
    """Return the sizes that `read` may give for an image file.

    Only the header is read and, for a JPEG, the end: a decoder fills the missing part of a
    truncated JPEG with grey, without an error.

    Args:
      path: path of the file.

    Returns:
      (height, width) in pixels as stored, followed by the exchanged pair where the EXIF tag
      exchanges height and width; None for an image too large for this check, which `read` may
      still decode.

    Raises:
      UserError: the file is missing, broken, or of a format that `read` does not support.
    """
    try:
        with PIL.Image.open(path) as image:
            width, height = image.size
            transposed = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
            # Phones append videos to photographs, so a missing end marker alone proves nothing:
            # only decoding does.
            if image.format == "JPEG" and not _has_end_marker(path):
                image.load()
        supported = cv2.haveImageReader(path)
    except PIL.Image.DecompressionBombError:
        return None
    except Exception as error:  # Pillow raises many types of exceptions for broken files.
        raise unreadable(path) from error
    if not supported:
        raise unreadable(path)
    return [(height, width), (width, height)] if transposed else [(height, width)]


def _has_end_marker(path):
    with pathlib.Path(path).open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
        return b"\xff\xd9" in file.read()
