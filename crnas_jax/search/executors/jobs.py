"""Jobs on an executor: which attempts are made, and what counts as failed.

Each attempt writes in a folder of its own, `attempts/<n>` of the job's, and starts from the newest
whole checkpoint of earlier ones, which it only reads. The first result of a job counts.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption
from crnas_jax.search.executors import executor as ends
from crnas_jax.search.executors.executor import Executor

# Attempts without a newer checkpoint: after so many exceptions a job has failed; after so many that
# were lost it is set aside.
MAX_ERRORS, MAX_LOSSES = 2, 5
# A job that has taken this many times the median of finished ones is attempted a second time where
# a worker idles.
_SLOW, _FEW_FINISHED = 3.0, 3
# Seconds between two looks at signals.
_LOOK = 1.0
# Seconds for the attempts to save when the controller is asked to stop.
_PATIENCE = 60.0


@dataclasses.dataclass
class Job:
    """A job that is under way.

    Attributes:
      name: its name.
      task: see `Executor.start`; its arguments get `folder`, that of the attempt, and `earlier`,
        those of earlier ones, newest first, at last the job's own where that has checkpoints.
      folder: its folder.
      kind: jobs of a kind take about as long.
      running: start of each running attempt, seconds, and its worker, by ticket.
      newest: step of the newest checkpoint when an attempt was last lost or failed.
      errors: exceptions since then.
      losses: lost attempts since then.
      avoid: worker of the last exception; it may be at fault.
    """

    name: str
    task: dict
    folder: pathlib.Path
    kind: str = ""
    running: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    newest: int = -1
    errors: int = 0
    losses: int = 0
    avoid: str = ""

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint of all attempts; -1 where there is none."""
        names = (path.name for path in self.folder.glob("attempts/*/checkpoints/*"))
        return max((int(name) for name in names if name.isdigit()), default=-1)


@dataclasses.dataclass(frozen=True)
class JobEnd:
    """The end of a job.

    Attributes:
      name: its name.
      failure: why it has failed; "" where it has not.
      value: what it returned; {} where it has failed.
      worker: where the attempt ran.
      seconds: how long the attempt took.
      attempt: name of its folder.
    """

    name: str
    failure: str
    value: dict
    worker: str
    seconds: float
    attempt: str


class Jobs:
    """Runs jobs on an executor, in the order in which they were begun.

    Attributes:
      num_ended: number of jobs that have ended.
    """

    def __init__(self, executor: Executor, say: Callable[[str], None] = print):
        """Take an executor; `say` is told what users should know."""
        self._executor, self._say = executor, say
        self._waiting: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._durations: dict[str, list[float]] = {}
        self.num_ended = 0

    @property
    def num_workers(self) -> int:
        """Attempts that may run at once."""
        return self._executor.num_workers

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the jobs that have not ended."""
        return tuple(self._jobs)

    def states(self) -> dict[str, str]:
        """Return for each job that has not ended "running" or "waiting"."""
        return {name: "running" if job.running else "waiting" for name, job in self._jobs.items()}

    def begin(self, name: str, task: dict, folder: pathlib.Path, kind: str = "") -> None:
        """Begin a job unless one of that name is under way; it waits for a free worker.

        Arguments as the attributes of `Job`.
        """
        if name not in self._jobs:
            self._jobs[name] = Job(name, task, pathlib.Path(folder).absolute(), kind)
            self._waiting.append(self._jobs[name])
            self._start_waiting()

    def wait(self, seconds: float = _LOOK) -> list[JobEnd]:
        """Return the jobs that have ended, as soon as one has, or after some seconds.

        Raises:
          UserError: a mistake of the user, or a job that is lost again and again.
          Stopped: a stop was requested; attempts have saved what they could.
        """
        if interruption.requested():
            self._executor.close(_PATIENCE)
            raise interruption.Stopped("the attempts under way are saved")
        self._start_waiting()
        jobs_ended = []
        for outcome in self._executor.wait(seconds):
            job = next((job for job in self._jobs.values() if outcome.ticket in job.running), None)
            if job is not None:  # a late result of a job that has ended counts no more
                end = self._take(job, outcome)
                if end is not None:
                    jobs_ended.append(end)
        self._start_waiting()
        return jobs_ended

    def close(self) -> None:
        """End all attempts."""
        self._executor.close()

    def _start_waiting(self):
        for job in list(self._waiting):
            if self._executor.num_free() == 0:
                break
            avoid = job.avoid if self._executor.has_others(job.avoid) else ""
            if self._executor.num_free(avoid) > 0:
                self._waiting.remove(job)
                self._start(job, avoid)
        if not self._waiting:
            self._start_second()

    def _start_second(self):
        """Attempt the oldest job a second time if it takes unusually long for its kind."""
        alone = [job for job in self._jobs.values() if len(job.running) == 1 and not job.errors]
        if not alone:
            return
        oldest = min(alone, key=lambda job: min(job.running.values()))
        durations = self._durations.get(oldest.kind, [])
        if len(durations) < _FEW_FINISHED:
            return
        ((started, worker),) = oldest.running.values()
        age = time.monotonic() - started
        is_slow = age > _SLOW * statistics.median(durations)
        if is_slow and self._executor.num_free(avoid=worker) > 0:
            self._say(f"{oldest.name}: takes {age:.0f} s so far; a second attempt is made")
            self._start(oldest, avoid=worker)

    def _start(self, job, avoid=""):
        attempts = job.folder / "attempts"
        numbers = sorted(int(path.name) for path in attempts.glob("*") if path.name.isdigit())
        folder = attempts / str(numbers[-1] + 1 if numbers else 1)
        folder.mkdir(parents=True)
        earlier = [str(attempts / str(number)) for number in reversed(numbers)]
        if (job.folder / "checkpoints").exists():  # begun without an executor
            earlier.append(str(job.folder))
        arguments = {**job.task["arguments"], "folder": str(folder), "earlier": earlier}
        ticket = f"{job.name}.{folder.name}"
        worker = self._executor.start(ticket, {**job.task, "arguments": arguments}, avoid)
        job.running[ticket] = (time.monotonic(), worker)

    def _take(self, job, outcome):
        """Return the end of a job with this outcome of an attempt; None where it goes on."""
        del job.running[outcome.ticket]
        if outcome.kind == ends.MISTAKE:
            raise UserError(**outcome.value)
        if outcome.kind == ends.RESULT:
            failure = outcome.value.get("failure", "")
            if not failure:
                self._durations.setdefault(job.kind, []).append(outcome.seconds)
            return self._end(job, outcome, failure)
        if outcome.kind == ends.MEMORY:
            return self._end(job, outcome, "memory")
        newest = job.newest_step()
        if newest > job.newest:
            job.newest, job.errors, job.losses = newest, 0, 0
        text = outcome.value.get("text", "")
        if outcome.kind == ends.ERROR:
            job.errors, job.avoid = job.errors + 1, outcome.worker
            self._say(f"{job.name}: {text}")
            if job.errors >= MAX_ERRORS and not job.running:  # another attempt may be well
                return self._end(job, outcome, text)
        else:
            job.losses += 1
            self._say(f"{job.name}: the attempt on {outcome.worker} was lost ({text})")
            if job.losses >= MAX_LOSSES:
                problem = f"lost {job.losses} times without a newer checkpoint, last: {text}"
                remedy = "look at the machines and the attempt's log; the same command goes on"
                raise UserError(job.folder, "candidate", problem, remedy)
        if not job.running:
            self._waiting.insert(0, job)
        return None

    def _end(self, job, outcome, failure):
        for ticket in job.running:
            self._executor.cancel(ticket)
        job.running.clear()
        del self._jobs[job.name]
        self.num_ended += 1
        value = {} if failure else outcome.value
        attempt = outcome.ticket.rpartition(".")[2]
        return JobEnd(job.name, failure, value, outcome.worker, outcome.seconds, attempt)
