"""The process of an attempt: `python -m crnas_jax.search.executors.worker TASK OUTCOME CORES`.

TASK is a file with the task, OUTCOME the file that says how it ended. What the process prints is
its log. It ends when its standard input does, which the process that started it holds: no attempt
outlives its controller.
"""

import importlib
import json
import os
import pathlib
import sys
import threading
import traceback

from crnas_jax.errors import UserError, disk_error
from crnas_jax.parallel.process import prepare, trim_cache
from crnas_jax.runtime import interruption
from crnas_jax.runtime.files import write_json
from crnas_jax.search.executors.executor import ERROR, LOST, MEMORY, MISTAKE, RESULT, STOPPED

# How XLA says that a device's memory is full.
_FULL = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def attempt(task: dict) -> tuple[str, dict]:
    """Run a task in this process; return the kind of its end, and the value (`Outcome`)."""
    try:
        module, _, name = task["function"].partition(":")
        return RESULT, getattr(importlib.import_module(module), name)(**task["arguments"])
    except interruption.Stopped as stopped:
        return STOPPED, {"text": str(stopped)}
    except UserError as error:
        return MISTAKE, error.fields
    except MemoryError:
        return MEMORY, {}
    except OSError as error:  # of the machine, not of what is trained on it
        traceback.print_exc()
        mistake = disk_error(error)
        if mistake is not None:
            return MISTAKE, mistake.fields
        return LOST, {"text": f"{type(error).__name__}: {error}"[:1000]}
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        if any(word in text for word in _FULL):
            return MEMORY, {"text": text[:1000]}
        return ERROR, {"text": text[:1000]}


def main(task_file: str, outcome_file: str, cores: str = "") -> None:
    """Run the task in a file and write its outcome to another, on some cores of the machine."""
    if cores:  # before JAX starts as many threads as there are cores
        os.sched_setaffinity(0, map(int, cores.split(",")))
    prepare(saves_on_stop=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    kind, value = attempt(json.loads(pathlib.Path(task_file).read_text()))
    write_json(pathlib.Path(outcome_file), {"kind": kind, "value": value})
    trim_cache()
    sys.stdout.flush()
    # Threads of libraries may hold a process for seconds.
    os._exit(0)


def _end_with_parent():
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
