"""Read image files and Pillow images: one set of checks and one scale for every reader."""

import dataclasses
import io
import os
import pathlib
import stat
import threading
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np
import PIL.Image

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import as_path, exists

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")
# Formats by content, whatever the suffix. Pillow opens a JPEG with further photographs behind the
# first one as "MPO".
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
# Those that say where they end; decoders fill what is missing with grey or black.
_WITH_END = ("JPEG", "MPO", "PNG")
# Pixels of the largest image that is decoded: a small file can hold gigabytes of one colour.
MAX_PIXELS = 100_000_000
_EXIF_ORIENTATION, _TIFF_PHOTOMETRIC = 0x0112, 0x0106
_TAIL_BYTES = 4096  # last bytes of a file, in which a JPEG's end marker is looked for first
_OPENING = threading.Lock()  # Pillow's limit of pixels is one for the process

# What OpenCV says about broken files goes into our errors, not between the lines of a log.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
      format: one of `FORMATS`, or MPO.
      height: height of the image as stored, pixels.
      width: width of the image as stored, pixels.
      orientation: EXIF orientation, 1 to 8; 1 where there is none.
      has_16_bits: whether it is grey with samples of 16 bits.
    """

    format: str
    height: int
    width: int
    orientation: int
    has_16_bits: bool = False

    @property
    def stored_size(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.height, self.width

    @property
    def shown_size(self) -> tuple[int, int]:
        """Height and width as viewers show the image: orientations 5 to 8 exchange them."""
        return self.stored_size[::-1] if self.orientation > 4 else self.stored_size


def read(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file as viewers show it: rotated and mirrored as its EXIF orientation says.

    Raises:
      UserError: see `read_stored`.
    """
    image, header = read_stored(path, max_pixels)
    return turn(image, header.orientation)


def read_stored(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> tuple[np.ndarray, Header]:
    """Decode an image file as it is stored; of several images in it the first.

    Samples of 16 bits keep their upper 8. Transparency is dropped.

    Args:
      path: path of the file.
      max_pixels: pixels of the largest image to decode.

    Returns:
      Pixels, uint8 [H, W, 3] RGB, and the header, which says how to `turn` them.

    Raises:
      UserError: the file is missing, broken, cut off, too large, or no image.
    """
    return decode(path, content_of(path), max_pixels)


def decode(
    name: str | os.PathLike, content: bytes, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Header]:
    """Decode encoded bytes as `read_stored` does a file; `name` is for messages."""
    header = _header(name, io.BytesIO(content), max_pixels)
    return _decode(name, content, header), header


def check(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of a file that `read_stored` can decode.

    Of a JPEG or PNG, headers and ends are read: decoders fill what is missing with grey or black.
    Files of other formats, which are rare, are decoded.

    Raises:
      UserError: see `read_stored`.
    """
    require_regular(path)
    try:
        with as_path(path).open("rb") as file:
            header = _header(path, file, max_pixels)
    except OSError as error:
        raise unreadable(path) from error
    if header.format not in _WITH_END:
        _decode(path, content_of(path), header)
    return header


def check_content(name: str, content: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Return the header of encoded bytes that `decode` can decode; see `check`."""
    header = _header(name, io.BytesIO(content), max_pixels)
    if header.format not in _WITH_END:
        _decode(name, content, header)
    return header


def from_pillow(image: PIL.Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image as `read` returns those of its file, as shown.

    Raises:
      UserError: its mode has no known scale (32-bit integers, floats), or it is cut off.
    """
    try:
        return turn(_pillow_pixels(image), _orientation(image))
    except UserError:
        raise
    except Exception as error:  # Pillow raises many types of exceptions for broken files
        raise UserError(
            "predict", "images", f"a Pillow image that does not load: {error}", "open it again"
        ) from error


def turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror pixels as an EXIF orientation of 1 to 8 says."""
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def is_image(path: pathlib.Path) -> bool:
    """Tell whether a path is a file with an image suffix; hidden files are excluded."""
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def unreadable(path, problem: str = "") -> UserError:
    """Make the error for a file that cannot be read."""
    remedy = "restore it, or leave it out"
    if not problem and not exists(path):
        problem, remedy = "missing", f"{remedy}; it is looked for in {as_path(path).parent}"
    return UserError(path, "image", problem or "broken, or no image", remedy)


def require_pixels(name, height: int, width: int, max_pixels: int) -> None:
    """Raise UserError about an image with too many pixels."""
    if height * width > max_pixels:
        raise UserError(
            name,
            "image",
            f"{height} x {width} pixels are more than {max_pixels:,}",
            "make it smaller, or raise the limit max_pixels (config.data.max_pixels; --max_pixels)",
        )


def _undecodable(name, file):
    """Make the error for an open file that is no image."""
    file.seek(0)
    if file.read(12)[4:8] == b"ftyp":
        problem = "a HEIC or AVIF file, whatever its name"
        return UserError(name, "image", problem, "convert it to JPEG")
    return unreadable(name, "broken, or no image")


def require_regular(path) -> None:
    """Raise UserError unless a path is a regular file."""
    try:
        is_regular = stat.S_ISREG(as_path(path).stat().st_mode)
    except (OSError, ValueError) as error:
        raise unreadable(path) from error
    if not is_regular:  # opening a pipe would wait for ever
        raise unreadable(path, "not a regular file")


def content_of(path) -> bytes:
    """Return the content of a file.

    Raises:
      UserError: it is missing, or no regular file.
    """
    require_regular(path)
    try:
        return as_path(path).read_bytes()
    except OSError as error:
        raise unreadable(path) from error


def _header(path, file, max_pixels):
    """Read the header of an open file; raise UserError unless the file goes to its end."""
    try:
        with _open(file) as image:
            width, height = image.size
            name, mode = image.format, image.mode
            # Pillow would decode a whole PNG to look for its EXIF chunk.
            orientation = _png_orientation(file) if name == "PNG" else _orientation(image)
            cut_off = name in ("JPEG", "MPO") and not _jpeg_is_whole(file)
    except Exception as error:  # Pillow raises many types of exceptions for broken files
        raise _undecodable(path, file) from error
    require_pixels(path, height, width, max_pixels)
    if cut_off:
        raise unreadable(path, "broken: it is cut off")
    if name == "TIFF" and (orientation != 1 or mode in ("F", "I")):
        problem = f"a TIFF of {mode} samples" if mode in ("F", "I") else "a TIFF that is rotated"
        raise UserError(path, "image", problem, "save it upright with 8 or 16 bits, or as PNG")
    return Header(name, height, width, orientation, mode.startswith("I"))


def _open(file: BinaryIO) -> PIL.Image.Image:
    with _OPENING:
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            return PIL.Image.open(file, formats=FORMATS)
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _orientation(image):
    """Return the EXIF orientation of a Pillow image; XMP has one too, which viewers pass over."""
    tags = getattr(image, "tag_v2", None)  # a TIFF's own
    return _tag(image.info.get("exif", b"") if tags is None else tags)


def _png_orientation(file):
    """Return the orientation of a PNG; raise ValueError unless all its chunks are there."""
    orientation = 1
    for kind, start, length in _png_chunks(file):
        if kind == b"eXIf" and length < 2**20:
            file.seek(start)
            orientation = _tag(file.read(length))
    return orientation


def _tag(exif):
    """Return the orientation in the bytes of EXIF, or in tags; 1 where there is none."""
    if isinstance(exif, bytes):
        tags = PIL.Image.Exif()
        tags.load(exif)
        exif = tags
    value = exif.get(_EXIF_ORIENTATION)
    return value if value in range(1, 9) else 1


def _png_chunks(file) -> Iterator[tuple[bytes, int, int]]:
    """Yield (kind, start, length) of the chunks of a PNG."""
    size = file.seek(0, os.SEEK_END)
    position, kind = 8, b""
    while kind != b"IEND":
        file.seek(position)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if len(kind) != 4 or position + 12 + length > size:
            raise ValueError("it is cut off")
        yield kind, position + 8, length
        position += 12 + length


def _jpeg_is_whole(file):
    """Tell whether the first image of a JPEG has its end marker: decoders fill the rest with grey.

    Phones append videos to photographs, and headers hold thumbnails with end markers of their own:
    the marker that counts comes after the start of the scan, within which it cannot occur.
    """
    position, marker = 2, 0
    while marker != 0xDA:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4:
            return False
        if head[0] != 0xFF:  # decoders pass over what stands between two segments
            file.seek(position)
            distance = file.read().find(b"\xff")
            if distance < 0:
                return False
            position += distance
            continue
        marker = head[1]
        # Fill bytes, and markers without a length, are one and two bytes long.
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            position += 2 + int.from_bytes(head[2:], "big")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _TAIL_BYTES, position))
    if b"\xff\xd9" in file.read():
        return True
    file.seek(position)
    return b"\xff\xd9" in file.read()


def _decode(path, content, header):
    """Return the pixels as stored, uint8 [H, W, 3] RGB."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise unreadable(path, "broken, or no image") from error
    if image is None or image.shape[:2] != header.stored_size:
        raise unreadable(path, "broken, or no image")
    return image


def _pillow_pixels(image):
    """Return the pixels of a Pillow image as stored, uint8 [H, W, 3] RGB."""
    # Before version 12 Pillow gives the samples of 16-bit PNG files in 32 bits.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:  # white is 0
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, 2)
    if image.mode in ("I", "F"):
        problem = f"a Pillow image of mode {image.mode}, which has no known scale"
        raise UserError("predict", "images", problem, "convert it to 8 bits")
    return np.array(image.convert("RGB"))
