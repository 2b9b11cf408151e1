"""Stopping on request: SIGTERM and Ctrl-C let the step in flight finish and be saved."""

import os
import signal
import threading

from crnas_jax.runtime import team

_request = threading.Event()


class Stopped(Exception):
    """Work ended early because the user asked for it; everything finished is saved."""


def listen() -> None:
    """Treat SIGTERM and Ctrl-C as requests to stop; a second signal of the same kind kills."""

    def handle(signal_number, _):
        _request.set()
        signal.signal(signal_number, signal.SIG_DFL)
        # `print` is not reentrant, and the signal may have interrupted one.
        os.write(2, f"{signal.Signals(signal_number).name}: saving, then stopping\n".encode())

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, handle)


def requested() -> bool:
    """Return whether a stop was requested, of this process or another of its team.

    All processes of a team get the same answer, and have to ask equally often.
    """
    return team.current().stop_requested() if team.is_joint() else _request.is_set()


def stop_if_requested(message: str) -> None:
    """Raise Stopped with `message` if a stop was requested."""
    if requested():
        raise Stopped(message)
