"""Reading image files."""

import os
import pathlib

import cv2
import numpy as np
import PIL.Image

from crnas_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_TAIL = 4096  # bytes in which a JPEG's end marker is looked for


def read(path: str | os.PathLike, turn: bool = True) -> np.ndarray:
    """Pixels of a file, uint8 [H, W, 3] RGB.

    Args:
      path: of the file.
      turn: as the EXIF tag says; otherwise as stored.

    Raises:
      UserError: the file is missing, broken, or no image.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imread(os.fspath(path), flags)
    except cv2.error as error:  # more pixels than OpenCV takes
        raise unreadable(path) from error
    if image is None:
        raise unreadable(path)
    return image


def is_image(path: pathlib.Path) -> bool:
    """Whether a path is a file with the name of an image; hidden ones are not."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def unreadable(path) -> UserError:
    """The mistake of a file that is no image."""
    return UserError(path, "image", "missing or broken", "restore the file or remove its entry")


def sizes(path: str) -> list[tuple[int, int]] | None:
    """(height, width) as stored and, where it differs, as the EXIF tag turns it.

    Only the header is read, and of a JPEG the end, since a decoder fills what is cut off with grey.
    None for an image too large for this check; `read` may still take it.

    Raises:
      UserError: the file is missing, broken or of a format that `read` does not know.
    """
    try:
        with PIL.Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
            # Phones append films to photographs: without the marker near the end, decode.
            if image.format == "JPEG" and not _ends(path):
                image.load()
        known = cv2.haveImageReader(path)
    except PIL.Image.DecompressionBombError:
        return None
    except Exception as error:  # Pillow's readers raise whatever a broken file provokes
        raise unreadable(path) from error
    if not known:
        raise unreadable(path)
    return [(height, width), (width, height)] if turned else [(height, width)]


def _ends(path):
    with pathlib.Path(path).open("rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
        return b"\xff\xd9" in file.read()
