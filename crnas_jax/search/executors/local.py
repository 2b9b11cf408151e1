"""Attempts as processes on this machine, each with devices of its own."""

import contextlib
import dataclasses
import glob
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from crnas_jax.errors import UserError
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.options import check_choice, check_counts, check_not_negative
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
      threads: cores of an attempt on a CPU.
      per_device: attempts on one accelerator, each with a share of its memory.
      memory: gigabytes of a machine that a Ray cluster reserves for an attempt; 0 for none.
    """

    platform: str = "auto"
    workers: int = 0
    devices: int = 1
    threads: int = 1
    per_device: int = 1
    memory: float = 0.0

    def __post_init__(self):
        check_choice(self, "platform", PLATFORMS)
        check_counts(self, "devices", "per_device", "threads")
        check_counts(self, "workers", least=0)
        check_not_negative(self, "memory")


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
        remedy = "take fewer, or executor.platform 'cpu'"
        raise UserError("config", "executor.candidate_devices", problem, remedy)
    starts = range(0, len(ids) - options.devices + 1, options.devices)
    groups = [",".join(ids[start : start + options.devices]) for start in starts]
    visible = "CUDA_VISIBLE_DEVICES" if platform == "gpu" else "TPU_VISIBLE_CHIPS"
    slots = [
        Slot(
            f"{platform} {group}" + (f".{place}" if options.per_device > 1 else ""),
            {visible: group, **device_variables(platform, options)},
        )
        for place in range(options.per_device)  # one on each device first
        for group in groups
    ]
    return slots[: options.workers or None]


def device_variables(platform: str, options: WorkerOptions) -> dict[str, str]:
    """Return the variables of an attempt's process beside which devices it sees."""
    variables = {"JAX_PLATFORMS": {"gpu": "cuda"}.get(platform, platform)}
    if platform == "cpu":
        variables["OMP_NUM_THREADS"] = str(options.threads)
    elif platform == "gpu" and options.per_device > 1:
        share = f"{_MEMORY_SHARE / options.per_device:.3f}"
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = share
    elif platform == "tpu":  # a process on some chips of a host waits for no other host
        bounds = {4: "2,2,1", 8: "2,4,1"}.get(options.devices, f"1,{options.devices},1")
        variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] = bounds
        variables["TPU_PROCESS_BOUNDS"] = "1,1,1"
    return variables


def _cpu_slots(options):
    cores = sorted(os.sched_getaffinity(0))
    threads = options.threads
    workers = options.workers or max(len(cores) // threads, 1)
    if threads > len(cores):
        problem = f"{threads}, and this machine has {len(cores)} cores"
        raise UserError("config", "executor.candidate_threads", problem, "take fewer")
    slots = []
    for worker in range(workers):
        # Where there are more workers than cores they share them, as many threads as asked for.
        own = tuple(cores[(worker * threads + i) % len(cores)] for i in range(threads))
        environment = device_variables("cpu", options)
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
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")  # newer hosts
    return [str(index) for index, _ in enumerate(chips)]


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
        return sum(_devices(slot.name) != _devices(avoid) for slot in self._slots)

    def has_others(self, worker: str) -> bool:
        """Return whether there are workers on other devices."""
        return any(_devices(name) != _devices(worker) for name in self._names)

    def start(self, ticket: str, task: dict, avoid: str = "") -> str:
        """Start an attempt; see `Executor`."""
        slot = next(slot for slot in self._slots if _devices(slot.name) != _devices(avoid))
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
            outcome = {"kind": LOST, "value": {"text": f"ended with status {process.returncode}"}}
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(ticket, outcome["kind"], outcome["value"], slot.name, seconds)

    def cancel(self, ticket: str) -> None:
        """Kill an attempt."""
        if ticket in self._running:
            process, slot, folder, _ = self._running.pop(ticket)
            process.kill()
            process.wait()
            process.stdin.close()
            shutil.rmtree(folder, ignore_errors=True)
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


def _devices(name):
    """Return the devices that a worker's name says, which others may share."""
    return name.partition(".")[0]


def package_path() -> str:
    """Return where the package is found, for processes that start in any folder."""
    root = str(pathlib.Path(__file__).resolve().parents[3])
    return os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
