"""Progress as users see it: a bar on a terminal, plain lines in a log, a file in the folder."""

import sys
import time

from tqdm import tqdm

from crnas_jax.runtime import activity


class Progress:
    """Show a progress bar on a terminal; piped, print a line at most every `line_seconds`.

    The first unit compiles, which takes minutes for a large network: it is announced, and left out
    of the time to go.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        unit: str = "step",
        line_seconds: float = 15.0,
        beginning: str = "compiling",
    ):
        """Start the display.

        Args:
          name: text before the bar.
          total: number of units in all.
          done: units that were finished before.
          unit: name of a unit.
          line_seconds: least time between two plain lines.
          beginning: what is done before the first unit.
        """
        self._name, self._unit, self._total, self._done = name, unit, total, done
        self._line_seconds = line_seconds
        self._plain = not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=name, unit=unit, disable=self._plain)
        self._first, self._start_time, self._last_line = None, 0.0, 0.0
        if done < total:
            self._bar.set_postfix_str(beginning)
            if self._plain:
                print(f"{name}: {unit} {done}/{total}, {beginning}", flush=True)
            self._show(done, None, True, beginning)

    def update(self, done: int, **values: float) -> None:
        """Show that `done` units are finished, with `values` beside them."""
        self._bar.update(done - self._done)
        if self._first is None:
            self._first, self._start_time = done, time.monotonic()
            self._bar.initial, self._bar.start_t = done, time.time()
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in values.items()})
        self._done = done
        now, seconds_left = time.monotonic(), None
        if done > self._first:
            seconds_left = (now - self._start_time) / (done - self._first) * (self._total - done)
        self._show(done, seconds_left, done == self._total)
        if self._plain and (now - self._last_line > self._line_seconds or done == self._total):
            self._last_line = now
            shown = "".join(f" {name} {value:.4g}" for name, value in values.items())
            line = f"{self._name}: {self._unit} {done}/{self._total}{shown}"
            if seconds_left is not None:
                line += f", {seconds_left:.0f} s left"
            print(line, flush=True)

    def _show(self, done, seconds_left, is_new, note=""):
        shown = {"name": self._name, "unit": self._unit, "done": done, "total": self._total}
        activity.show(is_new, **shown, seconds_left=seconds_left, note=note)

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
