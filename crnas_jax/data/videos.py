"""Read and write the frames of video files, by OpenCV."""

import os
import pathlib
from collections.abc import Iterator

import cv2
import numpy as np

from crnas_jax.errors import UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
_FRAMES_PER_SECOND = 25.0  # of a file that does not say


def is_video(path: str | os.PathLike) -> bool:
    """Tell by its suffix whether a file is a video."""
    return pathlib.Path(path).suffix.lower() in SUFFIXES


def frames(path: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the frames of a video in order, uint8 [height, width, 3] RGB.

    Raises:
      UserError: OpenCV reads no frame of it.
    """
    reader, count = _open(path), 0
    try:
        while True:
            is_read, frame = reader.read()
            if not is_read:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        reader.release()
    if not count:
        raise _unreadable(path)


def frames_per_second(path: str | os.PathLike) -> float:
    """Return how many frames of a video are shown in a second."""
    reader = _open(path)
    rate = reader.get(cv2.CAP_PROP_FPS)
    reader.release()
    return rate if np.isfinite(rate) and rate > 0 else _FRAMES_PER_SECOND


class FrameWriter:
    """Write frames of one size to an .mp4 file; the first gives the size."""

    def __init__(self, path: str | os.PathLike, rate: float):
        """Name the file and its frames per second."""
        self._path, self._rate, self._writer = pathlib.Path(path), rate, None

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 [height, width, 3] RGB.

        Raises:
          UserError: the file cannot be written.
        """
        if self._writer is None:
            code, size = cv2.VideoWriter_fourcc(*"mp4v"), frame.shape[1::-1]
            self._writer = cv2.VideoWriter(str(self._path), code, self._rate, size)
            if not self._writer.isOpened():
                remedy = "name a folder that can be written"
                raise UserError(self._path, "--draw", "OpenCV cannot write it", remedy)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def __enter__(self) -> "FrameWriter":
        return self

    def __exit__(self, *error) -> None:
        if self._writer is not None:
            self._writer.release()


def _open(path):
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise _unreadable(path)
    return reader


def _unreadable(path):
    problem = "missing" if not pathlib.Path(path).exists() else "OpenCV reads no frame of it"
    return UserError(path, "--images", problem, "give a video that OpenCV reads, such as .mp4")
