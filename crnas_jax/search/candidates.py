"""Scores of networks that are each trained on a proxy task, as jobs: begun first, asked for later.

The journal is the truth: what stands there is not trained again, whichever strategy asks. A network
is known by its graph, so that codes of one network have one score.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import append, digest, read_json, whole_lines, write_json
from crnas_jax.runtime.team import decode, encode
from crnas_jax.search.executors.jobs import JobEnd, Jobs
from crnas_jax.search.journal import Journal, Score
from crnas_jax.spaces.space import Code

# A search stops when so many of the last proposals scored 0 for a failure: all of the first 5, or
# 20 of the last 50.
FAILURES = ((5, 5), (20, 50))
_FORMAT = 1
# Results between two snapshots of a strategy's state.
_SNAPSHOT = 25


@dataclasses.dataclass(frozen=True)
class Candidates:
    """What the jobs of candidates need, by graph.

    Attributes:
      name: name of the scores in the journal.
      task_of: function from a graph's code, the number of the seed and the share of the schedule to
        the task that trains it (`executors.Executor.start`).
      folder: folder that receives a folder for each candidate.
      journal: the record of scores.
      jobs: where they run.
      about: function from a graph to what the journal says of it beside its score.
      show_waiting: called now and then with the name of the training that is waited for.
      num_seeds: trainings of each candidate, whose scores are averaged.
      keep: candidates whose checkpoints and detections stay: the best so far.
      share: share of the schedule.
    """

    name: str
    task_of: Callable[[Code, int, float], dict]
    folder: pathlib.Path
    journal: Journal
    jobs: Jobs
    about: Callable[[Code], dict] = lambda graph: {}
    show_waiting: Callable[[str], None] = lambda job: None
    num_seeds: int = 1
    keep: int = 20
    share: float = 1.0

    def begin(self, graph: Code) -> None:
        """Begin to train a candidate unless its score is known or under way."""
        for seed in self._seeds:
            if self._known(graph, seed) is None:
                job = self._job(graph, seed)
                self._asked[job] = (graph, seed)
                task = self.task_of(graph, seed, self.share)
                self.jobs.begin(job, task, self.folder / job, kind=f"{self.share:.4g}")

    def finish(self, graph: Code) -> float:
        """Return the score of a candidate that was begun, as soon as it is there."""
        self.begin(graph)
        while (score := self.score(graph)) is None:
            missing = next(seed for seed in self._seeds if self._known(graph, seed) is None)
            self.show_waiting(self._job(graph, missing))
            for end in self.jobs.wait():
                self._journal(end)
        return score

    def drop(self, graphs: Iterable[Code]) -> None:
        """Remove the folders of candidates, except of those that are kept."""
        for graph in graphs:
            if graph not in self._kept:
                self._remove(graph)

    def _remove(self, graph):
        for seed in self._seeds:
            shutil.rmtree(self.folder / self._job(graph, seed), ignore_errors=True)

    def score(self, graph: Code) -> float | None:
        """Return the mean score over seeds; None before all of them are journaled."""
        scores = [self._known(graph, seed) for seed in self._seeds]
        if any(score is None for score in scores):
            return None
        return sum(score.value for score in scores) / len(scores)

    def failure(self, graph: Code) -> str:
        """Return why a candidate has failed; "" where it has not."""
        scores = (self._known(graph, seed) for seed in self._seeds)
        return next((score.failure for score in scores if score and score.failure), "")

    @property
    def _seeds(self):
        return range(self.num_seeds)

    @functools.cached_property
    def _asked(self) -> dict[str, tuple[Code, int]]:
        """Graph and seed of the jobs that were begun, by name."""
        return {}

    @property
    def searches(self) -> tuple[str, ...]:
        """Names of the scores of every seed in the journal."""
        return tuple(map(self._search, self._seeds))

    def _search(self, seed):
        name = self.name if self.share == 1 else f"{self.name} to {self.share:.4g}"
        return f"{name}, seed {seed}" if seed else name

    def _known(self, graph, seed):
        return self.journal.get(self._search(seed), graph, 0)

    def _job(self, graph, seed):
        return candidate_name(self.journal.key, graph, seed)

    def _journal(self, end: JobEnd):
        graph, seed = self._asked.pop(end.name)
        value, failure = end.value, end.failure
        score = Score(
            value.get("AP", 0.0),
            tuple(value.get("ci95", (0.0, 0.0))),
            num_batches=0,
            num_images=value.get("images", 0),
            failure=failure,
        )
        details = {name: value[name] for name in ("curve", "seconds_of") if name in value}
        self.journal.add(
            self._search(seed),
            graph,
            score,
            candidate=end.name,
            attempt=end.attempt,
            worker=end.worker,
            seconds=round(end.seconds, 1),
            **self.about(graph),
            **details,
        )
        text = f"failed: {failure}" if failure else f"AP {100 * score.value:.1f} %"
        print(f"{self.name}: {end.name} on {end.worker}, {end.seconds:.0f} s: {text}", flush=True)
        if self.share == 1 and self.score(graph) is not None:
            self._kept[graph] = self.score(graph)
            self._keep_best(self._kept)

    @functools.cached_property
    def _kept(self) -> dict[Code, float]:
        """Scores of the candidates whose folders stay, after those of the others are removed."""
        graphs = self.journal.scores_of(self._search(0))
        kept = {graph: score for graph in graphs if (score := self.score(graph)) is not None}
        self._keep_best(kept)
        return kept

    def _keep_best(self, kept):
        """Remove the folders of all but the best."""
        for graph in sorted(kept, key=lambda graph: (-kept[graph], graph))[self.keep :]:
            del kept[graph]
            self._remove(graph)


def candidate_name(key: str, graph: Code, seed: int) -> str:
    """Return the name of a candidate's training, and of its folder."""
    name = digest(key, repr(tuple(graph)))
    return f"{name}-seed{seed}" if seed else name


@dataclasses.dataclass(frozen=True)
class ByGraph:
    """Candidates by the codes of a space, as `proposing.PendingScores`.

    Attributes:
      candidates: the candidates.
      graph_of: function from a code to its network's graph.
      after_result: told of each candidate of a rung why it has failed, "" where it has not; what it
        raises ends the search.
    """

    candidates: Candidates
    graph_of: Callable[[Code], Code]
    after_result: Callable[[str], None] = lambda failure: None

    def begin(self, code: Code) -> None:
        """Begin to score a code."""
        self.candidates.begin(self.graph_of(code))

    def finish(self, code: Code) -> float:
        """Return the score of a code."""
        return self.candidates.finish(self.graph_of(code))

    def known(self, code: Code) -> float | None:
        """Return the score of a code, None before it is journaled."""
        return self.candidates.score(self.graph_of(code))

    def score_at(self, codes: Sequence[Code], share: float) -> list[float]:
        """Score every code after a share of its schedule, going on from where it was.

        What was trained of codes that are asked for no more is removed.
        """
        candidates = dataclasses.replace(self.candidates, share=share)
        graphs, values = [self.graph_of(code) for code in codes], []
        self.candidates.drop(set(self._earlier) - set(graphs))
        self._earlier[:] = graphs
        for graph in graphs:
            candidates.begin(graph)
        for graph in graphs:
            values.append(candidates.finish(graph))
            self.after_result(candidates.failure(graph))
        return values

    @functools.cached_property
    def _earlier(self) -> list[Code]:
        """The graphs of the rung before."""
        return []


class ProposalFile:
    """The proposals of a search, a JSON line each, flushed before the next; `proposing.Proposals`.

    A torn last line is dropped. Lines with another key, of another strategy for instance, are not
    used. Beside it lies a snapshot of the strategy's state after some results, with a digest of
    these. It only saves time: without it, or with other scores in the journal, the results are
    taken in again one by one.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        key: str,
        graph_of: Callable[[Code], Code],
        rejected: Callable[[], int] = lambda: 0,
    ):
        """Read the proposals that are there.

        Args:
          path: the file.
          key: digest of everything that proposals depend on besides scores.
          graph_of: function from a code to its network's graph.
          rejected: function that returns how many codes limits have rejected since it was called
            last.
        """
        self._path, self._key, self._rejected = pathlib.Path(path), key, rejected
        self._snapshot = self._path.with_name(f"{self._path.stem}_snapshot.json")
        self._covered = Chain(key)
        self._codes: list[Code] = []
        self._graphs: dict[Code, Code] = {}
        self._graph_of = graph_of
        self.num_rejected = 0
        self._read()

    def _read(self):
        for number, line in enumerate(whole_lines(self._path, repair=True), 1):
            try:
                row = json.loads(line)
                if row["format"] == _FORMAT and row["key"] == self._key:
                    self._take(tuple(row["code"]), tuple(row["graph"]), row["rejected"])
            except (ValueError, TypeError, KeyError) as error:
                problem, remedy = f"no proposal: {error}", "remove the line and those after it"
                raise UserError(self._path, f"line {number}", problem, remedy) from error

    def _take(self, code, graph, rejected):
        self._codes.append(code)
        self._graphs[code] = graph
        self.num_rejected += rejected

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, index: int) -> Code:
        """Return a recorded proposal."""
        return self._codes[index]

    def graph(self, code: Code) -> Code:
        """Return the graph of a code."""
        code = tuple(code)
        return self._graphs[code] if code in self._graphs else self._graph_of(code)

    def add(self, code: Code) -> None:
        """Record the next proposal."""
        code, rejected = tuple(map(int, code)), self._rejected()
        graph = self.graph(code)
        row = {"format": _FORMAT, "key": self._key, "proposal": len(self)}
        row |= {"code": list(code), "graph": list(graph), "rejected": rejected}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append(self._path, json.dumps(row) + "\n")
        self._take(code, graph, rejected)

    def restore(self, score_of: Callable[[Code], float | None]) -> tuple[int, Any] | None:
        """Return a number of results that were taken in, and the state after them, or None."""
        try:
            content = read_json(self._snapshot)
            count, chain = int(content["results"]), Chain(self._key)
            codes = self._codes[:count]
            chain.extend([(code, score_of(code)) for code in codes])
            if len(codes) == count and content["key"] == chain.digest:
                state = decode(content["state"])
                self._covered = chain
                return count, state
        except (UserError, KeyError, TypeError, ValueError):
            pass
        return None

    def keep(self, results: list[tuple[Code, float]], state: Any) -> None:
        """Keep a state now and then, with a digest of the results that it covers."""
        if len(results) % _SNAPSHOT == 0:
            if len(self._covered) > len(results):  # those of a snapshot that was not taken
                self._covered = Chain(self._key)
            self._covered.extend(results[len(self._covered) :])
            content = {"format": _FORMAT, "results": len(results)}
            content |= {"key": self._covered.digest, "state": encode(state)}
            write_json(self._snapshot, content, indent=None)


class Chain:
    """A digest of results that grows with them."""

    def __init__(self, key: str):
        """Begin with a key."""
        self.digest, self._count = digest(key), 0

    def __len__(self) -> int:
        return self._count

    def extend(self, results: Sequence[tuple[Code, float | None]]) -> None:
        """Add the next results."""
        for code, score in results:
            self.digest = digest(self.digest, repr((tuple(map(int, code)), score)))
        self._count += len(results)


class FailureLimit:
    """Stops a search in which too many candidates have failed, whatever their scores."""

    def __init__(self):
        self._failures: list[str] = []

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, failure: str) -> None:
        """Look at one more result: why it failed, "" where it did not.

        Raises:
          UserError: too many have failed.
        """
        self._failures.append(failure)
        for most, window in FAILURES:
            first = self._failures[:window] if most == window else self._failures[-window:]
            failed = [failure for failure in first if failure]
            if len(failed) >= most:
                problem = f"{len(failed)} of {len(first)} candidates failed, last: {failed[-1]}"
                remedy = "mend the cause (proxy, executor), then give another --workdir"
                raise UserError("search", "candidates", problem, remedy)
