"""A small process beside each host's working one: it says how that ended, and begins it again.

A process of several dies in C++ when another one is lost, without a word from Python, and one that
waits in a collective for a host that hangs would wait for ever. So the work is done in a child;
this process has no JAX backend, waits, passes signals on, ends a child that waits for too long, and
says in one line what became of it.
"""

import contextlib
import dataclasses
import json
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

from crnas_jax.runtime import interruption
from crnas_jax.runtime.options import check_counts, check_positive

# Statuses. The first is "temporary failure" in sysexits.h: the same command goes on; the last is
# the shell's for a process that SIGTERM has ended.
LOST, BUG, STOPPED = 75, 1, 128 + signal.SIGTERM
# What JAX prints, native traceback included, before it ends a process of several.
_FATAL = b"JAX distributed service detected fatal errors"
# How it names the lost ones; one that was begun again has another incarnation.
_NAMES = re.compile(
    rb"stopped sending heartbeats\):?\s*((?:\d+[,\s]*)+)|(\d+) unexpectedly tried to connect"
)
# It stands within so many bytes before the end of the output.
_TAIL = 1 << 16
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
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

    def report(self, kind: str, text: str = "", number: float = 0.0) -> None:
        os.write(self.pipe, (json.dumps([kind, text, number]) + "\n").encode())


_link: _Link | None = None


@contextlib.contextmanager
def waiting(what: str, at_least: float = 0.0) -> Iterator[None]:
    """Have the supervisor end this process if the block takes longer than `hang_seconds`.

    Args:
      what: text for the message, such as "training step".
      at_least: seconds that it may take even where `hang_seconds` are fewer.
    """
    if _link is None:
        yield
        return
    _link.report("waits", what, at_least)
    try:
        yield
    finally:
        _link.report("goes on")


def connected() -> None:
    """Tell the supervisor that all processes know each other."""
    if _link is not None:
        _link.report("connected")


def show(text: str) -> None:
    """Print a line on the screen of this host, also where all else goes to its log."""
    if _link is not None:
        _link.report("show", text)


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
        begin = log.tell()  # before it stands what earlier runs have written
        log.write(os.pread(_link.output, os.fstat(_link.output).st_size, 0))
        log.flush()
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)
    _link.report("log", str(path.absolute()), begin)


def supervise(work: Callable[[], int], host: int, options: SupervisorOptions) -> int:
    """Run `work` in a child process and return its status; `LOST` where another host is gone.

    Args:
      work: function that returns the status; it must not return to the caller's code.
      host: number of this process among those of the command, for messages.
      options: how long to wait, and whether to begin again.
    """
    stop = _StopRequests()
    with stop.listening():
        for attempt in range(options.restarts + 1):
            if stop.is_requested:
                return STOPPED
            status, problem = _Child(work, host, options, stop).watch()
            if problem is None:
                return status
            again = attempt < options.restarts and not stop.is_requested
            remedy = f"begun again, {attempt + 1} of {options.restarts}" if again else _GOES_ON
            print(f"error: {problem}; {remedy}", file=sys.stderr, flush=True)
            if not again:
                return status
    return status


class _StopRequests:
    """SIGTERM and Ctrl-C, passed on to the child; a second one ends it.

    Attributes:
      is_requested: whether one has come.
      child: process id; None where there is none.
    """

    def __init__(self):
        self.is_requested, self.child = False, None

    @contextlib.contextmanager
    def listening(self):
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        # One may have come while the command line was read.
        self.is_requested |= interruption.requested()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def fork(self):
        """Fork; no signal is lost, nor handled in the child as if it were here."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self.child = os.fork()
        if self.child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # A terminal sends Ctrl-C to both; it comes from here, as SIGTERM.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if self.child and self.is_requested:  # it came just before
            os.kill(self.child, signal.SIGTERM)
        return self.child

    def _handle(self, *_):
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(self.child, signal.SIGKILL if self.is_requested else signal.SIGTERM)
        self.is_requested = True


class _Child:
    """One run of the work in a process of its own."""

    def __init__(self, work, host, options, stop):
        self._host, self._options, self._stop = host, options, stop
        self._output = tempfile.TemporaryFile()  # noqa: SIM115, the child writes to it for long
        # The file of its output, and where this run's begins; it may name another one.
        self._log, self._log_begin, self._is_connected = None, 0, False
        self._reports, pipe = os.pipe()
        life, self._life = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = stop.fork()
        if self._pid == 0:
            os.close(self._reports)
            os.close(self._life)
            _become_child(pipe, self._output.fileno(), life, host)
            os._exit(work())
        os.close(pipe)
        os.close(life)

    def watch(self) -> tuple[int, str | None]:
        """Wait for the child; return its status, and what happened where it was none of its own."""
        try:
            hang = self._follow_reports()
            _, code = os.waitpid(self._pid, 0)
            self._stop.child = None
        finally:
            os.close(self._reports)
            os.close(self._life)
        return self._verdict(os.waitstatus_to_exitcode(code), hang)

    def _follow_reports(self):
        """Read what the child reports until it ends.

        Returns:
          What took how many seconds too long, where the child was ended for that; or None.
        """
        end, what, limit, rest = None, "", 0.0, ""
        while True:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                os.kill(self._pid, signal.SIGKILL)
                return what, limit
            ready, *_ = select.select([self._reports], [], [], left)
            if not ready:
                continue
            content = os.read(self._reports, 1 << 16)
            if not content:
                return None
            *lines, rest = (rest + content.decode()).split("\n")
            for kind, text, number in map(json.loads, lines):
                if kind == "log":
                    self._log, self._log_begin = text, int(number)
                elif kind == "connected":
                    self._is_connected = True
                elif kind == "show":
                    print(text, file=sys.stderr, flush=True)
                elif kind == "waits":
                    what, limit = text, max(self._options.hang_seconds, number)
                    end = time.monotonic() + limit
                else:
                    end = None

    def _verdict(self, status, hang):
        me = f"host {self._host}"
        if hang is not None:
            what, limit = hang
            return LOST, f"{me}: {what} took longer than {limit:g} s (--hang_seconds)"
        if status >= 0:
            # Of hosts but the primary nothing is on the screen otherwise.
            if status not in (0, STOPPED) and self._host and self._log is None:
                sys.stderr.write(self._native_output().decode(errors="replace"))
            return status, None
        if self._stop.is_requested and -status in (signal.SIGKILL, signal.SIGTERM):
            return STOPPED, None
        native = self._native_output()
        if -status == signal.SIGABRT and _FATAL in native:
            if not self._is_connected:
                problem = "not all hosts came, or host 0 cannot be reached"
                return LOST, f"{me}: {problem} (--coordinator, --num_processes)"
            return LOST, f"{self._lost(native)}: lost, nothing was heard of it"
        name = signal.Signals(-status).name
        hint = ", for lack of memory perhaps" if -status == signal.SIGKILL else ""
        return LOST, f"{me}: ended by {name}{hint}"

    def _lost(self, native):
        """Return which hosts are lost; where JAX names none it is the coordinator's, host 0."""
        names = _NAMES.search(native)
        numbers = re.findall(rb"\d+", names[0]) if names else [b"0"]
        others = [f"host {int(number)}" for number in numbers if int(number) != self._host]
        return " and ".join(others) or "another host"

    def _native_output(self):
        """Return the end of what the child has written natively."""
        source, is_path = self._log or self._output.fileno(), self._log is not None
        with contextlib.suppress(OSError), open(source, "rb", closefd=is_path) as file:
            begin = max(self._log_begin, os.fstat(file.fileno()).st_size - _TAIL)
            file.seek(begin)
            return file.read()
        return b""


def _become_child(pipe, output, life, host):
    """Send output where it belongs, and end with the supervisor."""
    global _link
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
