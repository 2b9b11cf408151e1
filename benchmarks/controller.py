"""How fast does SpineNet's controller propose, and how long does it take to go on?

    python benchmarks/controller.py
    python benchmarks/controller.py --count=500 --strategies=evolution

Fifteen blocks, all parts of the space, the paper's limits; candidates are not trained, a score is a
number drawn from the graph. The search is run up to `--count` proposals by the driver of a run, and
then continued by one proposal: once from the snapshot of the strategy's state, once without it, by
taking in every recorded proposal again. Seconds are those from opening the working folder to the
new proposal, without the imports.
"""

import pathlib
import sys
import tempfile
import time
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from absl import app, flags
from common import report

from configs import search_spinenet
from crnas_jax.experiments import workers
from crnas_jax.experiments.architecture_search import search_architecture
from crnas_jax.experiments.run import open_run
from crnas_jax.search.executors.executor import RESULT, Outcome
from crnas_jax.search.proposals import ProposalFile

_COUNT = flags.DEFINE_integer("count", 10_000, "Candidates in the journal.")
_STRATEGIES = flags.DEFINE_list("strategies", ["evolution", "reinforce"], "Strategies.")


class Table:
    """An executor whose attempts end at once, with a score drawn from the network."""

    num_workers = 100

    def __init__(self, *arguments):
        del arguments
        self._ended = []

    def num_free(self, avoid=""):
        """Return that there is room."""
        del avoid
        return self.num_workers - len(self._ended)

    def has_others(self, worker):
        """Return that there is one worker."""
        del worker
        return False

    def start(self, ticket, task, avoid=""):
        """End an attempt, of a minute: none counts as slow."""
        del avoid
        blocks = task["arguments"]["arch"]["blocks"]
        levels = np.array([block["level"] for block in blocks])
        value = {"AP": float(np.abs(np.sin(levels * (1 + np.arange(len(levels))))).mean())}
        self._ended.append(Outcome(ticket, RESULT, value, "table", 60.0))
        return "table"

    def wait(self, seconds):
        """Return what has ended."""
        del seconds
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, ticket):
        """Do nothing."""

    def close(self, patience=0.0):
        """Do nothing."""


def search(folder: pathlib.Path, strategy: str, count: int) -> tuple[float, float]:
    """Search up to some proposals; return seconds in all, and to the first new proposal."""
    config = search_spinenet.get_config("gpu")
    with config.unlocked():
        config.data.name = "synthetic"
        config.data.synthetic = {"size": 96, "train": 16, "val": 16, "test": 16}
        config.search.architecture_strategy = strategy
        config.search.evaluations = count
    begin, added, add = time.perf_counter(), [], ProposalFile.add

    def noting(record, code):
        added.append(time.perf_counter())
        add(record, code)

    with (
        mock.patch.object(workers, "LocalExecutor", Table),
        mock.patch.object(ProposalFile, "add", noting),
    ):
        run = open_run(config, folder)
        run.record()
        search_architecture(run)
        run.workdir.release()
    return time.perf_counter() - begin, added[0] - begin


def measure(strategy: str) -> dict:
    """Return proposals per second and seconds to go on."""
    with tempfile.TemporaryDirectory() as root:
        folder, count = pathlib.Path(root) / "run", _COUNT.value
        total, _ = search(folder, strategy, count)
        print(f"{strategy}: {count} proposals in {total:.0f} s", flush=True)
        snapshot = folder / "architecture_search" / "proposals_snapshot.json"
        size = snapshot.stat().st_size
        seconds, names = {}, {"snapshot": False, "replay": True}
        for added, (name, is_removed) in enumerate(names.items(), 1):
            if is_removed:
                snapshot.unlink()
            whole, first = search(folder, strategy, count + added)
            seconds[name] = round(first, 2)
            print(f"{strategy}: {name}: first after {first:.1f} s, all {whole:.1f} s", flush=True)
        sizes = {
            name: round((folder / path).stat().st_size / 1e6, 1)
            for name, path in (
                ("journal", "journal.jsonl"),
                ("proposals", "architecture_search/proposals.jsonl"),
            )
        }
    return {
        "proposals per second": round(count / total, 1),
        "seconds to go on": seconds,
        "megabytes": {**sizes, "snapshot": round(size / 1e6, 2)},
    }


def main(argv):
    """Measure every strategy and report it."""
    del argv
    rows = {strategy: measure(strategy) for strategy in _STRATEGIES.value}
    report("controller", {"candidates": _COUNT.value, **rows})


if __name__ == "__main__":
    app.run(main)
