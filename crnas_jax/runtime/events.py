"""TensorBoard's events, written at once.

tensorboardX's own writer has a thread: on a full disk that dies, and the training would wait for it
for ever.
"""

import os
import pathlib
import time
from collections.abc import Mapping

import numpy as np

from crnas_jax.runtime.ownership import may_write


class Events:
    """Events in a folder; on a process that is not the primary what is added does nothing."""

    def __init__(self, folder: pathlib.Path, first_step: int = 0):
        """Begin a file; TensorBoard leaves out earlier events from `first_step` on."""
        self._folder, self._writer = folder, None
        if not may_write(folder):
            return
        # Imports PyTorch where that is installed, seconds that only who writes should pay.
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._event, self._summary = Event, summary
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add the numbers of a step by name."""
        if self._writer is not None and may_write(self._folder):
            for name, value in values.items():
                self._write(step=step, summary=self._summary.scalar(name, value))
            self._writer.flush()

    def counts(self, step: int, counts: Mapping[str, np.ndarray]) -> None:
        """Add histograms of choices: by name how often each, 0, 1, .., was drawn, [choices]."""
        if self._writer is not None and may_write(self._folder):
            for name, drawn in counts.items():
                choices = np.arange(len(drawn))
                sums = [int((drawn * choices**power).sum()) for power in range(3)]
                # The first bucket ends below the first choice and is empty.
                limits, buckets = np.append(-0.5, choices + 0.5), np.append(0, drawn)
                ends = choices[np.flatnonzero(drawn)[[0, -1]]] if sums[0] else (0, 0)
                histogram = self._summary.histogram_raw(
                    name, *map(float, (*ends, *sums)), limits.tolist(), buckets.tolist()
                )
                self._write(step=step, summary=histogram)
            self._writer.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Add an image, uint8 [height, width, 3]."""
        if self._writer is not None and may_write(self._folder):
            self._write(step=step, summary=self._summary.image(name, image, dataformats="HWC"))
            self._writer.flush()

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, **fields):
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())
