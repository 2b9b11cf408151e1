"""Where jobs run: the protocol of executors, and what they say of an attempt that has ended.

A job is the training of a network, or its evaluation. It runs in a process of its own, whose
devices are set before JAX starts and which ends with it. An executor starts attempts and says how
they end; which job is attempted again, and what counts, is decided in `jobs`.
"""

import dataclasses
from typing import Protocol, runtime_checkable

# How an attempt ends.
RESULT = "result"  # its function returned
ERROR = "error"  # its function raised
MISTAKE = "mistake"  # it raised UserError, which the user can mend
MEMORY = "memory"  # ended because the machine's memory was full
LOST = "lost"  # ended by a signal, or with its machine
STOPPED = "stopped"  # saved its state when asked to stop


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of an attempt.

    Attributes:
      ticket: name of the attempt.
      kind: one of the above.
      value: what its function returned; of an error {"text"}, of a mistake the fields of
        `UserError`.
      worker: where it ran.
      seconds: how long.
    """

    ticket: str
    kind: str
    value: dict
    worker: str
    seconds: float


@runtime_checkable
class Executor(Protocol):
    """Runs attempts at jobs, as many at once as it has room for.

    Attributes:
      num_workers: attempts that run at once, at most; of a cluster what it has now.
    """

    num_workers: int

    def num_free(self, avoid: str = "") -> int:
        """Return how many attempts can be started now, on other workers than `avoid`."""

    def has_others(self, worker: str) -> bool:
        """Return whether there are other workers than one, free or not."""

    def start(self, ticket: str, task: dict, avoid: str = "") -> str:
        """Start an attempt, where there is room for it.

        Args:
          ticket: its name, none of an attempt before.
          task: what it runs: `function`, "module:name", called with `arguments`, values of JSON.
          avoid: worker on which it must not run.

        Returns:
          The worker that it runs on.
        """

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the attempts that have ended, as soon as one has, or after some seconds.

        Raises:
          UserError: the executor itself is lost.
        """

    def cancel(self, ticket: str) -> None:
        """End an attempt whose outcome is not wanted any more."""

    def close(self, patience: float = 0.0) -> None:
        """End all attempts; those that save when asked to stop have some seconds for it."""
