"""Runs a script that meets a fault after some seconds, at the next program that it runs.

python tests/faulty.py FAULT SECONDS SCRIPT FLAGS..., with one of `FAULTS`.
"""

import fcntl
import pathlib
import resource
import runpy
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from crnas_jax.parallel.hosts import Program
from crnas_jax.training import loop

START = time.monotonic()


def fail():
    """Be a bug on this host."""
    raise KeyError("a fault of the test")


def hang():
    """Wait for ever, heartbeats going on."""
    time.sleep(1e6)


def fill_disk():
    """Refuse to write more than a few bytes to a file, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def at_next_program(seconds, fault):
    """Meet the fault when the seconds are over and a program is to run; once."""
    run, is_over = Program.__call__, []

    def run_or_fail(program, *arguments, **options):
        if not is_over and time.monotonic() - START > seconds:
            is_over.append(True)
            fault()
        return run(program, *arguments, **options)

    Program.__call__ = run_or_fail


def break_numbers(seconds):
    """Have boxes that are no numbers in this host's part of the batches."""
    put_parts = loop.put_parts

    def put(mesh, batch, num_parts):
        if time.monotonic() - START > seconds:
            batch = {**batch, "boxes": np.full_like(batch["boxes"], np.nan)}
        return put_parts(mesh, batch, num_parts)

    loop.put_parts = put


def ignore_locks(seconds):
    """Work on a mount that does not honour locks."""
    del seconds
    fcntl.flock = lambda *_: None


FAULTS = {
    "fail": lambda seconds: at_next_program(seconds, fail),
    "hang": lambda seconds: at_next_program(seconds, hang),
    "full disk": lambda seconds: at_next_program(seconds, fill_disk),
    "no numbers": break_numbers,
    "no locks": ignore_locks,
}

if __name__ == "__main__":
    fault, seconds, *sys.argv = sys.argv[1:]
    FAULTS[fault](float(seconds))
    sys.path.insert(0, str(pathlib.Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
