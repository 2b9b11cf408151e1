"""Progress as users see it: a bar on a terminal, plain lines in a log."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Show a progress bar on a terminal; piped, print a line at most every `line_seconds`."""

    def __init__(
        self, name: str, total: int, done: int = 0, unit: str = "step", line_seconds: float = 15.0
    ):
        """Start the display.

        Args:
          name: text before the bar.
          total: number of units in all.
          done: units that were finished before.
          unit: name of a unit.
          line_seconds: least time between two plain lines.
        """
        self._name, self._unit, self._total, self._done = name, unit, total, done
        self._line_seconds = line_seconds
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=self._plain)
        self._first, self._start_time, self._last_line = done, time.monotonic(), 0.0

    def update(self, done: int, **values: float) -> None:
        """Show that `done` units are finished, with `values` beside them."""
        self._bar.update(done - self._done)
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self._done = done
        now = time.monotonic()
        if self._plain and (now - self._last_line > self._line_seconds or done == self._total):
            self._last_line = now
            seconds_per_unit = (now - self._start_time) / max(done - self._first, 1)
            shown = "".join(f" {name} {value:.4g}" for name, value in values.items())
            seconds_left = seconds_per_unit * (self._total - done)
            line = f"{self._name}: {self._unit} {done}/{self._total}{shown}"
            print(f"{line}, {seconds_left:.0f} s left", flush=True)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
