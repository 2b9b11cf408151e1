"""A small process beside each host's working one: it says how that ended, and begins it again.

A process of several dies in C++ when another one is lost, without a word from Python, and one that
waits in a collective for a host that hangs would wait for ever. So the work is done in a child;
this process has no JAX backend, waits, passes signals on, ends a child that waits for too long, and
says in one line what became of it.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from crnas_jax.runtime.options import check_counts, check_positive

# "Temporary failure" of sysexits.h: the same command goes on.
LOST = 75
# What JAX prints, native traceback included, before it ends a process of several.
_FATAL = b"JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(rb"stopped sending heartbeats\):?\s*((?:\d+[,\s]*)+)")
# Bytes at the end of the output in which that stands.
_TAIL = 1 << 16
_GOES_ON = "the same command goes on from the last checkpoint, on any number of hosts"


@dataclasses.dataclass(frozen=True)
class SupervisorOptions:
    """How long to wait for others, and what to do then.

    Attributes:
      heartbeat_seconds: silence of a process after which the others end.
      hang_seconds: longest wait in a step or for other processes, compilation left out.
      restarts: how often work is begun again after another process was lost.
    """

    heartbeat_seconds: int = 60
    hang_seconds: float = 1800.0
    restarts: int = 0

    def __post_init__(self):
        check_counts(self, "heartbeat_seconds")
        check_counts(self, "restarts", least=0)
        check_positive(self, "hang_seconds")


@dataclasses.dataclass(frozen=True)
class _Link:
    """What the child has of its supervisor.

    Attributes:
      pipe: file descriptor to report to, in lines.
      output: file descriptor of what is written natively, before `log_to`.
    """

    pipe: int
    output: int

    def report(self, kind: str, text: str = "") -> None:
        os.write(self.pipe, f"{kind} {' '.join(text.split())}\n".encode())


_link: _Link | None = None


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Have the supervisor end this process if the block takes longer than `hang_seconds`.

    Args:
      what: text for the message, such as "training step".
    """
    if _link is None:
        yield
        return
    _link.report("waits", what)
    try:
        yield
    finally:
        _link.report("goes on")


def log_to(path: pathlib.Path) -> None:
    """Append what this process writes natively to a file, what it has written so far included.

    Of all processes but the primary that is all of their output.
    """
    if _link is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with path.open("ab") as log:
        log.write(os.pread(_link.output, os.fstat(_link.output).st_size, 0))
        log.flush()
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    _link.report("log", str(path.absolute()))


def supervise(work: Callable[[], int], host: int, options: SupervisorOptions) -> int:
    """Run `work` in a child process and return its status; `LOST` where another host is gone.

    Args:
      work: function that returns the status; it must not return to the caller's code.
      host: number of this process among those of the command, for messages.
      options: how long to wait, and whether to begin again.
    """
    for attempt in range(options.restarts + 1):
        status, problem = _Child(work, host, options).watch()
        if problem is None:
            return status
        again = attempt < options.restarts
        remedy = f"begun again, {attempt + 1} of {options.restarts}" if again else _GOES_ON
        print(f"error: {problem}; {remedy}", file=sys.stderr, flush=True)
        if not again:
            return status
    return status


class _Child:
    """One run of the work in a process of its own."""

    def __init__(self, work, host, options):
        self._host, self._options, self._is_stopping = host, options, False
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, the child writes to it for long
        self._reports, pipe = os.pipe()
        life, self._life = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._reports)
            os.close(self._life)
            _become_child(pipe, self._output.fileno(), life, host)
            os._exit(work())
        os.close(pipe)
        os.close(life)

    def watch(self) -> tuple[int, str | None]:
        """Wait for the child; return its status, and what happened where it was none of its own."""
        handlers = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, self._pass_on),
                (signal.SIGINT, signal.SIG_IGN),  # a terminal sends it to the child too
            )
        }
        try:
            log, hang = self._follow_reports()
            _, code = os.waitpid(self._pid, 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(self._reports)
            os.close(self._life)
        return self._verdict(os.waitstatus_to_exitcode(code), log, hang)

    def _pass_on(self, number, _):
        """Ask the child to stop; at the second time end it."""
        os.kill(self._pid, signal.SIGKILL if self._is_stopping else number)
        self._is_stopping = True

    def _follow_reports(self):
        """Read what the child reports until it ends.

        Returns:
          The file of its output, and what took too long, where the child was ended for that.
        """
        log, waits, since, rest = None, None, 0.0, ""
        while True:
            left = None
            if waits is not None:
                left = self._options.hang_seconds - (time.monotonic() - since)
                if left <= 0:
                    os.kill(self._pid, signal.SIGKILL)
                    return log, waits
            ready, *_ = select.select([self._reports], [], [], left)
            if not ready:
                continue
            content = os.read(self._reports, 1 << 16)
            if not content:
                return log, None
            *lines, rest = (rest + content.decode()).split("\n")
            for kind, _, text in (line.partition(" ") for line in lines):
                if kind == "log":
                    log = text
                else:
                    waits, since = (text if kind == "waits" else None), time.monotonic()

    def _verdict(self, status, log, hang):
        me = f"host {self._host}"
        if hang is not None:
            limit = f"{self._options.hang_seconds:g} s"
            return LOST, f"{me}: {hang} took longer than {limit} (--hang_seconds)"
        if status >= 0:
            return status, None
        if self._is_stopping and -status in (signal.SIGKILL, signal.SIGTERM):
            return 128 + signal.SIGTERM, None
        native = self._native_output(log)
        if _FATAL in native:
            found = _UNHEALTHY.search(native)
            lost = [int(number) for number in re.findall(rb"\d+", found[1])] if found else [0]
            lost = [number for number in lost if number != self._host] or [0]
            hosts = " and ".join(f"host {number}" for number in lost)
            return LOST, f"{hosts}: lost, nothing was heard of it"
        name = signal.Signals(-status).name
        hint = ", for lack of memory perhaps" if -status == signal.SIGKILL else ""
        return LOST, f"{me}: ended by {name}{hint}"

    def _native_output(self, log):
        """Return the end of what the child has written natively."""
        with contextlib.suppress(OSError), open(log or self._output.fileno(), "rb") as file:
            file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return file.read()
        return b""


def _become_child(pipe, output, life, host):
    """Send output where it belongs, and end with the supervisor."""
    global _link
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if host == 0:
        # Native code writes pages when a host is lost, not to be seen on the terminal.
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    _link = _Link(pipe, output)

    def end_with_supervisor():
        os.read(life, 1)  # nothing comes: it returns when the other end is gone
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end_with_supervisor, daemon=True).start()
