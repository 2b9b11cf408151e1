"""The jobs of a run: which executor they run on, and the networks that are trained on it.

A training that runs elsewhere leaves an attempt in its step's folder; `adopt` makes it the step's.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from crnas_jax import __version__
from crnas_jax.arch import Architecture
from crnas_jax.errors import UserError
from crnas_jax.experiments.evidence import DETECTIONS
from crnas_jax.experiments.keys import init_name, step_key, training_seed
from crnas_jax.experiments.run import Run
from crnas_jax.runtime import team
from crnas_jax.runtime.files import write_json
from crnas_jax.runtime.step_key import FINALISTS, row_of
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.executors.local import LocalExecutor, make_slots
from crnas_jax.search.executors.ray import open_ray
from crnas_jax.settings import run as run_settings
from crnas_jax.settings.architectures import executor_options, worker_options

_REMOTE = "crnas_jax.experiments.remote"
# File of a finished attempt in a step's folder.
_ATTEMPT = "attempt.json"


@contextlib.contextmanager
def jobs(run: Run) -> Iterator[Jobs]:
    """Open the executor that the config names, until the block ends."""
    options, logs = executor_options(run.config), run.path / "logs" / "attempts"
    if options.kind == "ray":
        executor = open_ray(options.address, worker_options(run.config), logs)
    else:
        _require_free_devices()
        executor = LocalExecutor(make_slots(worker_options(run.config)), logs)
    opened = Jobs(executor)
    try:
        yield opened
    finally:
        opened.close()


def _require_free_devices():
    backend = jax.default_backend()
    if backend != "cpu":  # the command of an architecture search leaves accelerators alone
        problem = f"'local', and this process holds the {backend} that others would need"
        remedy = "use crnas-jax run-spinenet; for CR-NAS leave it at 'auto'"
        raise UserError("config", "executor.kind", problem, remedy)


def task(
    run: Run,
    config: ConfigDict,
    arch: Architecture,
    seed: int,
    split: str,
    epochs: float = 1.0,
    until: float = 1.0,
    init_from: str = "",
    max_memory: float = 0.0,
) -> dict:
    """Return the task that trains a network; arguments as of `remote.train_network`."""
    arguments = {
        **_shared(run, config, arch, split),
        "seed": seed,
        "epochs": epochs,
        "until": until,
        "init_from": str(pathlib.Path(init_from).absolute()) if init_from else "",
        "max_memory": max_memory,
    }
    return {"function": f"{_REMOTE}:train_network", "arguments": arguments}


def _shared(run, config, arch, split):
    return {
        "config": config.to_dict(),
        "arch": json.loads(arch.to_json()),
        "split": split,
        "digests": {name: run.data_digests[name] for name in ("train", split)},
        "version": __version__,
        "records": str((run.path / "records").absolute()),
    }


def is_remote(run: Run) -> bool:
    """Tell whether networks that are trained alone are trained on an executor."""
    trains_candidates = not run_settings.levels(run.config)
    return executor_options(run.config).kind != "auto" or trains_candidates


def train_ahead(run: Run, networks: Sequence[tuple[str, Architecture]], split: str) -> None:
    """Train the networks of some steps at once, where the config asks for an executor.

    They are scored on a split too. The steps are then begun, and `adopt` finds what they need.

    Args:
      run: the run.
      networks: names of steps and their backbones.
      split: the split.
    """
    if not is_remote(run) or team.is_joint():
        return
    waiting, pretrained = {}, run_settings.pretrained_networks(run.config)
    for step, arch in networks:
        is_finalist = row_of(step) == FINALISTS  # these start without
        if init_name(run, step) in pretrained and not is_finalist:
            continue  # trained in this process, after its classification
        if run.workdir.begin(step, step_key(run, step)) is None and not _has_ended(run, step):
            options = run_settings.refine_options(run.config)
            epochs = options.short if is_finalist else 1.0
            start, seed = run_settings.init_from(run.config)[init_name(run, step)], training_seed
            waiting[step] = task(
                run, run.config, arch, seed(run, step), split, epochs, init_from=start
            )
    for step, end, seconds, folder in _run_all(run, waiting, ""):
        content = {"folder": folder.name, "split": split, **end.value}
        write_json(run.path / step / _ATTEMPT, content)
        # What the step has spent, to which its own invocation adds next to nothing.
        write_json(run.path / step / "spent.json", {"seconds": seconds})


def detect_ahead(run: Run, networks: Sequence[tuple[str, Architecture]], split: str) -> None:
    """Detect on a split with the trained networks of some steps at once, as `train_ahead`."""
    if not is_remote(run) or team.is_joint():
        return
    waiting = {}
    for step, arch in networks:
        is_done = run.workdir.finished(f"{step}/{split}", step_key(run, f"{step}/{split}"))
        if is_done is None and detections_ahead(run, step, split) is None:
            arguments = _shared(run, run.config, arch, split)
            arguments["weights"] = str((run.path / step).absolute())
            waiting[step] = {"function": f"{_REMOTE}:detect", "arguments": arguments}
    for step, _, _, folder in _run_all(run, waiting, f"detections_{split}"):
        (folder / DETECTIONS).rename(run.path / step / f"detections_{split}.json")
        shutil.rmtree(folder.parents[1])


def _run_all(run, tasks, part):
    """Yield each step as soon as it has ended.

    Yields:
      The step, its end, its share of the time that all take side by side, and the attempt's folder.
    """
    if not tasks:
        return
    with jobs(run) as running:
        for step, step_task in tasks.items():
            running.begin(step, step_task, run.path / step / part)
        at_once = max(min(len(tasks), running.num_workers), 1)
        while running.names:
            for end in running.wait():
                if end.failure:
                    remedy = "look at the log in logs/attempts; the same command tries again"
                    raise UserError(run.path / end.name, "worker", end.failure, remedy)
                folder = run.path / end.name / part / "attempts" / end.attempt
                if not (folder / DETECTIONS).exists():
                    problem = f"what {end.worker} has written is not here"
                    remedy = "name a folder that all machines share"
                    raise UserError(run.path, "--workdir", problem, remedy)
                name = "/".join(filter(None, (end.name, part)))
                print(f"{name}: on {end.worker}, {end.seconds:.0f} s", flush=True)
                yield end.name, end, end.seconds / at_once, folder


def _has_ended(run, step):
    return (run.path / step / _ATTEMPT).exists()


def adopt(run: Run, step: str) -> bool:
    """Make the finished attempt at a step the step's own files; tell whether there is one."""
    folder = run.path / step
    if not _has_ended(run, step):
        return False
    content = json.loads((folder / _ATTEMPT).read_text())
    source = folder / "attempts" / content["folder"]
    if source.exists():
        for path in source.iterdir():
            if path.name == DETECTIONS:
                path.rename(folder / f"detections_{content['split']}.json")
            else:
                _remove(folder / path.name)  # of a training that the attempt has gone on with
                path.rename(folder / path.name)
        shutil.rmtree(folder / "attempts")
    return True


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def detections_ahead(run: Run, step: str, split: str) -> list[dict] | None:
    """Return the detections of an adopted training on a split; None where it has none."""
    file = run.path / step / f"detections_{split}.json"
    return json.loads(file.read_text()) if file.exists() else None
