"""Scores from a table in place of trainings, for processes that tests start."""

import os
import pathlib
import signal
import time

from crnas_jax.errors import UserError
from crnas_jax.search.executors.executor import RESULT, Outcome

# What becomes of attempts, by the first entry of a code; the others are scored at once.
SLOW, LOST, BROKEN, DIVERGED, REFUSED = 5, 6, 7, 8, 9


def score(code: list[int], folder: str, earlier: list[str]) -> dict:
    """Return what `remote.train_network` returns, or end as the code says."""
    kind = code[0]
    if kind == SLOW and not earlier:
        time.sleep(600)
    if kind == LOST and not earlier:
        (pathlib.Path(folder) / "checkpoints" / "3").mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == BROKEN:
        raise ValueError("no such layer")
    if kind == DIVERGED:
        return {"failure": "not finite: loss"}
    if kind == REFUSED:
        raise UserError("worker", "data.val", "other content", "give all machines the same data")
    return {"AP": kind / 10, "ci95": [0.0, 1.0], "images": 4}


class AtOnce:
    """An executor whose attempts end at once, with the scores that a test tells."""

    num_workers = 2

    def __init__(self, values):
        self.values, self.started, self._ended = values, [], []

    def num_free(self, avoid=""):
        return 2 - len(self._ended)

    def has_others(self, worker):
        return False

    def start(self, ticket, task, avoid=""):
        self.started.append(task)
        value = self.values(**task["arguments"])
        self._ended.append(Outcome(ticket, RESULT, value, "here", 60.0))
        return "here"

    def wait(self, seconds):
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, ticket):
        pass

    def close(self, patience=0.0):
        pass
