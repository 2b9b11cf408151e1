"""What a user sees of a run: a progress bar or plain lines, JSONL and TensorBoard."""

import json
import pathlib
import sys
import time

from tensorboardX import SummaryWriter
from tqdm import tqdm


class RunLog:
    """Progress and metrics of one training run.

    On a terminal a progress bar with loss, images per second and time left; piped, a plain line at
    most every `line_seconds`.
    """

    def __init__(
        self, folder: pathlib.Path, name: str, start: int, steps: int, line_seconds: float = 15.0
    ):
        """Args: where metrics go, the run's name, first step, last step, seconds between lines."""
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._steps, self._line_seconds = name, steps, line_seconds
        self._jsonl = (folder / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(folder))
        self._bar = tqdm(
            total=steps, initial=start, desc=name, unit="step", disable=not sys.stderr.isatty()
        )
        self._plain = self._bar.disable
        self._start, self._began, self._last_line = start, time.monotonic(), 0.0

    def step(self, step: int, images: int) -> None:
        """A step was sent off; `images` in it."""
        self._images = images
        if not self._plain:
            self._bar.update(1)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Values of a finished step."""
        now = time.monotonic()
        rate = (step - self._start) * self._images / max(now - self._began, 1e-9)
        left = (self._steps - step) * self._images / max(rate, 1e-9)
        row = {"step": step, **values, "images_per_second": round(rate, 2)}
        self._jsonl.write(json.dumps({"run": self._name, **row}) + "\n")
        self._jsonl.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)
        if not self._plain:
            self._bar.set_postfix(loss=f"{values['loss']:.3f}", img_s=f"{rate:.1f}")
        elif now - self._last_line > self._line_seconds or step == self._steps:
            self._last_line = now
            print(
                f"{self._name}: step {step}/{self._steps} loss {values['loss']:.4f} "
                f"{rate:.1f} images/s, {left:.0f} s left",
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.close()
        self._jsonl.close()
        self._events.close()
