"""Scores of networks that are each trained on a proxy task, as jobs: begun first, asked for later.

The journal is the truth: what stands there is not trained again, whichever strategy asks. A network
is known by its graph, so that codes of one network have one score.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import digest
from crnas_jax.runtime.step_key import seed_scores
from crnas_jax.search.executors.jobs import JobEnd, Jobs
from crnas_jax.search.journal import Journal, Score
from crnas_jax.spaces.space import Code

# A search stops when so many of the last proposals scored 0 for a failure: all of the first 5, or
# 20 of the last 50.
FAILURES = ((5, 5), (20, 50))
# End of the name of a folder beside that of a whole training.
_RUNGS = "-rungs"


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
            self.drop_rungs(graph)
            if graph not in self._kept:
                self._remove(graph)

    def drop_rungs(self, graph: Code) -> None:
        """Remove what was trained for lower rungs alone, of a candidate with a whole score."""
        self._remove(graph, _RUNGS)

    def _remove(self, graph, ending=""):
        for seed in self._seeds:
            name = candidate_name(self.journal.key, graph, seed) + ending
            shutil.rmtree(self.folder / name, ignore_errors=True)

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
        return seed_scores(name, seed)

    def _known(self, graph, seed):
        return self.journal.get(self._search(seed), graph, 0)

    def _job(self, graph, seed):
        name = candidate_name(self.journal.key, graph, seed)
        # What is trained to the end, by another strategy, goes back to no lower rung.
        is_trained = self.journal.get(seed_scores(self.name, seed), graph, 0) is not None
        return f"{name}{_RUNGS}" if self.share < 1 and is_trained else name

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
            if share == 1:
                candidates.drop_rungs(graph)
        for graph in graphs:
            values.append(candidates.finish(graph))
            self.after_result(candidates.failure(graph))
        return values

    @functools.cached_property
    def _earlier(self) -> list[Code]:
        """The graphs of the rung before."""
        return []


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
