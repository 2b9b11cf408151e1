"""Runs a script that meets a fault after a number of programs.

python tests/faulty.py FAULT COUNT FILE SCRIPT FLAGS..., with one of `FAULTS`; the file is made when
it comes. Programs are counted rather than seconds, so that it comes at the same place of the work
on a fast machine and on a slow one.
"""

import contextlib
import fcntl
import os
import pathlib
import random
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from crnas_jax import checkpoint
from crnas_jax.data.images import unreadable
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.parallel import hosts
from crnas_jax.parallel.hosts import Program
from crnas_jax.training import loop

# Seconds for which "paused" stops a process: more than its heartbeats may be silent.
PAUSE = 15


def kill():
    """End this process at once, without a word."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_soon():
    """End this process within half a second, wherever it is then."""
    threading.Timer(random.uniform(0, 0.5), kill).start()


def kill_in_save():
    """End this process when it begins to save a checkpoint; others have begun it."""
    checkpoint.ocp.save = lambda *_: kill()


def kill_in_write():
    """End this process when it has written to a journal or another file, before the disk has it."""
    os.fsync = lambda _: kill()


def kill_supervisor():
    """End the process that watches over this one."""
    os.kill(os.getppid(), signal.SIGKILL)


def ask_to_stop():
    """Ask the run to stop, as a preempted machine does."""
    os.kill(os.getppid(), signal.SIGTERM)


def interrupt():
    """Ask the run to stop, as Control-C does: a terminal sends it to all processes."""
    for pid in (os.getpid(), os.getppid()):
        os.kill(pid, signal.SIGINT)


def stop_in_wait():
    """Stand still, heartbeats too, when this process waits next; its supervisor ends it."""
    waiting = hosts.waiting

    @contextlib.contextmanager
    def stop(*arguments, **options):
        with waiting(*arguments, **options):
            os.kill(os.getpid(), signal.SIGSTOP)
            yield

    hosts.waiting = stop


def pause():
    """Stand still until the others have given this process up."""
    subprocess.Popen(["sh", "-c", f"sleep {PAUSE}; kill -CONT {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)


def fail():
    """Be a bug on this host."""
    raise KeyError("a fault of the test")


def fail_in_save():
    """Be a bug on this host when it begins to save a checkpoint; others have begun it."""
    checkpoint.ocp.save = lambda *_: fail()


def hang():
    """Wait for ever, heartbeats going on."""
    time.sleep(1e6)


def fill_disk():
    """Refuse to write more than a few bytes to a file, as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))


def break_numbers():
    """Have boxes that are no numbers in this host's part of the batches."""
    put_parts = loop.put_parts

    def put(mesh, batch, num_parts):
        return put_parts(mesh, {**batch, "boxes": np.full_like(batch["boxes"], np.nan)}, num_parts)

    loop.put_parts = put


def break_image():
    """Have images that cannot be decoded in this host's part of the batches."""

    def read(source, index):
        raise unreadable(f"{index}.jpg")

    SyntheticSource.__getitem__ = read


def ignore_locks():
    """Work on a mount that does not honour locks."""
    fcntl.flock = lambda *_: None


FAULTS = {
    "killed": kill_soon,
    "killed in a save": kill_in_save,
    "killed in a write": kill_in_write,
    "supervisor killed": kill_supervisor,
    "asked to stop": ask_to_stop,
    "interrupted": interrupt,
    "stopped": stop_in_wait,
    "paused": pause,
    "bug": fail,
    "bug in a save": fail_in_save,
    "hang": hang,
    "full disk": fill_disk,
    "no numbers": break_numbers,
    "unreadable image": break_image,
    "no locks": ignore_locks,
}


def meet(fault, count, file):
    """Have this process meet a fault, once, when it has run a number of programs."""
    if count == 0:
        file.touch()
        fault()
        return
    run, num_run = Program.__call__, 0

    def run_or_fail(program, *arguments, **options):
        nonlocal num_run
        num_run += 1
        if num_run == count and not file.exists():  # not when begun again
            file.touch()
            fault()
        return run(program, *arguments, **options)

    Program.__call__ = run_or_fail


if __name__ == "__main__":
    name, count, file, *sys.argv = sys.argv[1:]
    meet(FAULTS[name], int(count), pathlib.Path(file))
    sys.path.insert(0, str(pathlib.Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
