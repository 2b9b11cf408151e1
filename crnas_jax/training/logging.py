"""What a user sees of a run: a progress bar or plain lines, JSONL and TensorBoard."""

import json
import pathlib
import sys
import time

from tqdm import tqdm

from crnas_jax.runtime.workdir import replacing


class Progress:
    """A progress bar on a terminal; piped, a plain line at most every `line_seconds`."""

    def __init__(
        self, name: str, total: int, done: int = 0, unit: str = "step", line_seconds: float = 15.0
    ):
        self._name, self._unit, self._total, self._done = name, unit, total, done
        self._line_seconds = line_seconds
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=self._plain)
        self._start, self._began, self._last_line = done, time.monotonic(), 0.0

    def update(self, done: int, **values: float) -> None:
        """`done` of all are finished; `values` are shown beside them."""
        self._bar.update(done - self._done)
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self._done = done
        now = time.monotonic()
        if self._plain and (now - self._last_line > self._line_seconds or done == self._total):
            self._last_line = now
            each = (now - self._began) / max(done - self._start, 1)
            shown = "".join(f" {name} {value:.4g}" for name, value in values.items())
            left = each * (self._total - done)
            print(
                f"{self._name}: {self._unit} {done}/{self._total}{shown}, {left:.0f} s left",
                flush=True,
            )

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


class RunLog:
    """Progress of one training run; `metrics.jsonl` and TensorBoard events in `folder`.

    Steps after `start` that an interrupted run had logged are dropped: they are done again.
    """

    def __init__(self, folder: pathlib.Path, name: str, start: int, steps: int, batch_size: int):
        # Imports PyTorch where that is installed, seconds that only training should pay.
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._batch_size = name, batch_size
        _drop_after(folder / "metrics.jsonl", start)
        self._jsonl = (folder / "metrics.jsonl").open("a")
        self._events = SummaryWriter(str(folder), purge_step=start + 1)
        self._progress = Progress(name, steps, start)
        self._last = (start, time.monotonic())

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Values of a finished step; images per second are those since the last call."""
        now, (last_step, last_time) = time.monotonic(), self._last
        rate = (step - last_step) * self._batch_size / max(now - last_time, 1e-9)
        self._last = (step, now)
        row = {"step": step, **values, "images_per_second": round(rate, 2)}
        self._jsonl.write(json.dumps({"run": self._name, **row}) + "\n")
        self._jsonl.flush()
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(name, value, step)
        self._progress.update(step, loss=values["loss"], images_per_second=rate)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()
        self._jsonl.close()
        self._events.close()


def _drop_after(path, step):
    """Keeps the whole lines of a metrics file up to a step."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # torn: the process died while writing it
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    with replacing(path) as file:
        file.write("".join(kept).encode())
