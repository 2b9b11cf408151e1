"""The record of a training: progress for users, JSON lines and TensorBoard for tools."""

import json
import pathlib
import time

import jax
import numpy as np
from jaxtyping import PyTree

from crnas_jax.runtime.events import Events
from crnas_jax.runtime.files import replacing
from crnas_jax.runtime.ownership import may_write
from crnas_jax.runtime.progress import Progress

# Histograms are many numbers that change slowly.
_LOGS_PER_HISTOGRAM = 10


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
        self._jsonl, self._drawn, self._num_logged = None, {}, 0
        if may_write(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(folder / "metrics.jsonl", start)
            self._jsonl = (folder / "metrics.jsonl").open("a")
        self._events = Events(folder, start + 1)
        self._progress = Progress(name, num_steps, start)
        self._last = (start, time.monotonic())

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log a finished step; images per second are an average since the last call."""
        now, (last_step, last_time) = time.monotonic(), self._last
        rate = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self._last = (step, now)
        row = {"step": step, **values, "images_per_second": round(rate, 2)}
        if self._jsonl is not None and may_write(self._folder):
            self._jsonl.write(json.dumps({"run": self._name, **row}) + "\n")
            self._jsonl.flush()
        self._events.scalars(step, {name: row[name] for name in row if name != "step"})
        self._num_logged += 1
        if self._num_logged % _LOGS_PER_HISTOGRAM == 1:
            self._events.counts(step, self._drawn)
        self._progress.update(step, loss=values["loss"], images_per_second=rate)

    def path(self, choice: PyTree) -> None:
        """Count a sampled path of a supernet; its histogram goes with some of the next `metrics`.

        The counts begin anew where a training is resumed.
        """
        for path, drawn in jax.tree_util.tree_leaves_with_path(choice):
            part = "".join(f"/{key.key}" for key in path if hasattr(key, "key"))
            for place, number in enumerate(np.ravel(drawn).tolist()):
                name = f"paths{part}/{place}"
                counts = self._drawn.get(name, np.zeros(0, int))
                missing = max(number + 1 - len(counts), 0)
                counts = np.concatenate([counts, np.zeros(missing, int)])
                counts[number] += 1
                self._drawn[name] = counts

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()
        if self._jsonl is not None:
            self._jsonl.close()
        self._events.close()


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
