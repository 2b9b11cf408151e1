"""The record of a training: progress for users, JSON lines and TensorBoard for tools."""

import json
import os
import pathlib
import time

from crnas_jax.runtime.files import replacing
from crnas_jax.runtime.ownership import may_write
from crnas_jax.runtime.progress import Progress


class RunLog:
    """Write `metrics.jsonl` and TensorBoard events to a folder (the primary), and show progress.

    Steps after `start` that an interrupted run logged are dropped: they are repeated.
    """

    def __init__(
        self, folder: pathlib.Path, name: str, start: int, num_steps: int, batch_size: int
    ):
        """Open the log.

        Args:
          folder: receives the files.
          name: name of the training.
          start: steps that are finished.
          num_steps: steps in all.
          batch_size: images in a global batch.
        """
        self._folder, self._name, self._batch_size = folder, name, batch_size
        self._jsonl = self._events = None
        if may_write(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(folder / "metrics.jsonl", start)
            self._jsonl = (folder / "metrics.jsonl").open("a")
            self._events = _Events(folder, start + 1)
        self._progress = Progress(name, num_steps, start)
        self._last = (start, time.monotonic())

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log a finished step; images per second are an average since the last call."""
        now, (last_step, last_time) = time.monotonic(), self._last
        rate = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self._last = (step, now)
        row = {"step": step, **values, "images_per_second": round(rate, 2)}
        if self._events is not None and may_write(self._folder):
            self._jsonl.write(json.dumps({"run": self._name, **row}) + "\n")
            self._jsonl.flush()
            self._events.add(step, {name: value for name, value in row.items() if name != "step"})
        self._progress.update(step, loss=values["loss"], images_per_second=rate)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()
        if self._events is not None:
            self._jsonl.close()
            self._events.close()


class _Events:
    """TensorBoard events, written at once.

    tensorboardX's own writer has a thread: on a full disk that dies, and the training would wait
    for it for ever.
    """

    def __init__(self, folder: pathlib.Path, purge_step: int):
        """Begin a file; TensorBoard leaves out earlier events from `purge_step` on."""
        # Imports PyTorch where that is installed, seconds that only training should pay.
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        self._event, self._scalar = Event, summary.scalar
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step."""
        for name, value in values.items():
            self._write(step=step, summary=self._scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def _write(self, **fields):
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def _drop_after(path, last_step):
    """Keep the whole lines of a metrics file up to a step."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            is_kept = json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):  # torn: the process died while writing it
            continue
        if is_kept:
            lines.append(line + "\n")
    with replacing(path) as file:
        file.write("".join(lines).encode())
