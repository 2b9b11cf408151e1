"""Stopping on request: after SIGTERM or Ctrl-C the work in flight is finished and saved first."""

import os
import signal
import threading

_request = threading.Event()


class Stopped(Exception):
    """Work ended early because it was asked to; everything finished is saved."""


def listen() -> None:
    """From now on SIGTERM and Ctrl-C are requests; a second one of the same kind kills."""

    def handle(number, _):
        _request.set()
        signal.signal(number, signal.SIG_DFL)
        # Not `print`: the signal may have come in the middle of one.
        os.write(2, f"{signal.Signals(number).name}: saving, then stopping\n".encode())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def requested() -> bool:
    """Whether somebody asked to stop."""
    return _request.is_set()


def stop_if_requested(what: str) -> None:
    """Raises Stopped, with `what` for people, if somebody asked to stop."""
    if requested():
        raise Stopped(what)
