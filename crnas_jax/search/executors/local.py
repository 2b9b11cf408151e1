"""Attempts as processes on this machine, each with devices of its own."""

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.options import check_choice, check_counts
from crnas_jax.search.executors.executor import LOST, Outcome

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
_POLL = 0.05
# Share of a device's memory that the attempts on it have together.
_MEMORY_SHARE = 0.9


@dataclasses.dataclass(frozen=True)
class WorkerOptions:
    """What an attempt runs on.

    Attributes:
      platform: one of `PLATFORMS`; "auto": what this machine has.
      workers: attempts at once; 0 for as many as devices allow.
      devices: accelerators of an attempt.
      threads: cores of an attempt on a CPU; 0 for all, shared evenly by the workers.
      per_device: attempts on one accelerator, each with a share of its memory.
    """

    platform: str = "auto"
    workers: int = 0
    devices: int = 1
    threads: int = 1
    per_device: int = 1

    def __post_init__(self):
        check_choice(self, "platform", PLATFORMS)
        check_counts(self, "devices", "per_device")
        check_counts(self, "workers", "threads", least=0)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The devices of a worker.

    Attributes:
      name: name of the worker.
      environment: variables that its processes get.
      cores: cores that they run on; () for all.
    """

    name: str
    environment: dict[str, str]
    cores: tuple[int, ...] = ()


def find_platform(options: WorkerOptions) -> str:
    """Return "gpu", "tpu" or "cpu", without starting JAX."""
    if options.platform != "auto":
        return options.platform
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if wanted:
        first = wanted.split(",")[0]
        return {"cuda": "gpu", "rocm": "gpu"}.get(first, first)
    if _gpus():
        return "gpu"
    return "tpu" if _tpus() else "cpu"


def make_slots(options: WorkerOptions) -> list[Slot]:
    """Return the workers of this machine.

    Raises:
      UserError: it has fewer devices than one attempt takes.
    """
    platform = find_platform(options)
    if platform == "cpu":
        return _cpu_slots(options)
    ids = _gpus() if platform == "gpu" else _tpus()
    if len(ids) < options.devices:
        problem = f"{options.devices}, and this machine has {len(ids)}"
        raise UserError("WorkerOptions", "devices", problem, "take fewer, or platform 'cpu'")
    slots = []
    for start in range(0, len(ids) - options.devices + 1, options.devices):
        group = ",".join(ids[start : start + options.devices])
        if platform == "gpu":
            environment = {"CUDA_VISIBLE_DEVICES": group, "JAX_PLATFORMS": "cuda"}
            if options.per_device > 1:
                share = f"{_MEMORY_SHARE / options.per_device:.3f}"
                environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = share
        else:
            environment = {"TPU_VISIBLE_CHIPS": group, "JAX_PLATFORMS": "tpu"}
            environment |= tpu_bounds(options.devices)
        for place in range(options.per_device):
            part = f".{place}" if options.per_device > 1 else ""
            slots.append(Slot(f"{platform} {group}{part}", environment))
    return slots[: options.workers or None]


def tpu_bounds(devices: int) -> dict[str, str]:
    """Return the variables with which a process on some chips of a host waits for no other host."""
    bounds = {4: "2,2,1", 8: "2,4,1"}.get(devices, f"1,{devices},1")
    return {"TPU_CHIPS_PER_PROCESS_BOUNDS": bounds, "TPU_PROCESS_BOUNDS": "1,1,1"}


def _cpu_slots(options):
    cores = sorted(os.sched_getaffinity(0))
    workers = options.workers or max(len(cores) // max(options.threads, 1), 1)
    threads = options.threads or max(len(cores) // workers, 1)
    if threads > len(cores):
        problem = f"{threads}, and this machine has {len(cores)} cores"
        raise UserError("WorkerOptions", "threads", problem, "take fewer")
    slots = []
    for worker in range(workers):
        # Where there are more workers than cores they share them, as many threads as asked for.
        own = tuple(cores[(worker * threads + i) % len(cores)] for i in range(threads))
        environment = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads)}
        slots.append(Slot(f"cpu {','.join(map(str, own))}", environment, own))
    return slots


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:  # SLURM's own choice, or the user's
        return [part for part in visible.split(",") if part and part != "-1"]
    names = (re.fullmatch(r"/dev/nvidia(\d+)", path) for path in glob.glob("/dev/nvidia*"))
    return sorted((match[1] for match in names if match), key=int)


def _tpus() -> list[str]:
    visible = os.environ.get("TPU_VISIBLE_CHIPS")
    if visible is not None:
        return [part for part in visible.split(",") if part]
    return [str(index) for index, _ in enumerate(sorted(glob.glob("/dev/accel*")))]


class LocalExecutor:
    """A process for each attempt; implements `executor.Executor`."""

    def __init__(self, slots: Sequence[Slot], logs: pathlib.Path):
        """Take the workers.

        Args:
          slots: the workers (`make_slots`).
          logs: folder that receives a file with what each attempt prints.
        """
        self.num_workers = len(slots)
        self._slots, self._logs, self._running = list(slots), logs, {}
        self._names = {slot.name for slot in slots}
        self._folder = tempfile.TemporaryDirectory(prefix="crnas_jax-")

    def num_free(self, avoid: str = "") -> int:
        """Return the number of idle workers; see `Executor`."""
        return sum(slot.name != avoid for slot in self._slots)

    def has_others(self, worker: str) -> bool:
        """Return whether there are workers of another name."""
        return bool(self._names - {worker})

    def start(self, ticket: str, task: dict, avoid: str = "") -> str:
        """Start an attempt; see `Executor`."""
        slot = next(slot for slot in self._slots if slot.name != avoid)
        self._slots.remove(slot)
        name = re.sub(r"[^\w.-]", "_", ticket)
        folder = pathlib.Path(self._folder.name) / name
        folder.mkdir()
        write_json(folder / "task.json", task)
        self._logs.mkdir(parents=True, exist_ok=True)
        log = (self._logs / f"{name}.txt").open("ab")
        files = [str(folder / name) for name in ("task.json", "outcome.json")]
        cores = ",".join(map(str, slot.cores))
        process = subprocess.Popen(
            [sys.executable, "-m", "crnas_jax.search.executors.worker", *files, cores],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment, "PYTHONPATH": package_path()},
            # Signals of the terminal go to the controller, which passes them on.
            start_new_session=True,
        )
        log.close()
        self._running[ticket] = (process, slot, folder, time.monotonic())
        return slot.name

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the attempts that have ended; see `Executor`."""
        end = time.monotonic() + seconds
        while True:
            ended = [t for t, (process, *_) in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= end:
                return [self._outcome(ticket) for ticket in ended]
            time.sleep(_POLL)

    def _outcome(self, ticket):
        process, slot, folder, started = self._running.pop(ticket)
        self._slots.append(slot)
        process.stdin.close()
        seconds = time.monotonic() - started
        try:
            outcome = json.loads((folder / "outcome.json").read_text())
        except (OSError, ValueError):  # a signal, or an end without a word
            text = f"ended with status {process.returncode}"
            return Outcome(ticket, LOST, {"text": text}, slot.name, seconds)
        return Outcome(ticket, outcome["kind"], outcome["value"], slot.name, seconds)

    def cancel(self, ticket: str) -> None:
        """Kill an attempt."""
        if ticket in self._running:
            process, slot, _, _ = self._running.pop(ticket)
            process.kill()
            process.wait()
            process.stdin.close()
            self._slots.append(slot)

    def close(self, patience: float = 0.0) -> None:
        """End all attempts; see `Executor`."""
        processes = [process for process, *_ in self._running.values()]
        if patience:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            end = time.monotonic() + patience
            while time.monotonic() < end and any(p.poll() is None for p in processes):
                time.sleep(_POLL)
        for ticket in list(self._running):
            self.cancel(ticket)
        self._folder.cleanup()


def package_path() -> str:
    """Return where the package is found, for processes that start in any folder."""
    root = str(pathlib.Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
