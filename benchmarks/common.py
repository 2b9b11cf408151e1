"""What the benchmarks share: sizes, timing, and where results go."""

import functools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from crnas_jax.experiments import workers
from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.parallel.mesh import make_mesh, put_parts
from crnas_jax.runtime.files import write_json

RESULTS = pathlib.Path(__file__).parent / "results"
HALF_WIDTHS = (32, 64, 128, 256)


def detector_options(size: int) -> DetectorOptions:
    """Return the paper's neck and heads, with fewer proposals for images below 512 pixels."""
    if size >= 512:
        return DetectorOptions(num_classes=80)
    rpn = RPNOptions(pre_nms=(500, 250), post_nms=(250, 250))
    return DetectorOptions(80, 256, rpn, BoxHeadOptions(num_samples=128))


def random_batch(num_images: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a batch of noise with eight boxes an image, sides in pixels."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (num_images, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (num_images, 8, 2))], -1)
    return {
        "image": rng.integers(0, 255, (num_images, height, width, 3), np.uint8),
        "image_size": np.full((num_images, 2), (height, width), np.int32),
        "boxes": (boxes * [width, height, width, height]).astype(np.float32),
        "labels": rng.integers(1, 81, (num_images, 8)).astype(np.int32),
        "valid": np.ones((num_images, 8), bool),
        "crowd": np.zeros((num_images, 8), bool),
        "weight": np.ones(num_images, np.float32),
        "image_id": np.arange(num_images, dtype=np.int64),
    }


def device_parts(batch: dict[str, np.ndarray], num_parts: int = 1):
    """Return the mesh of one device, and the batch on it, cut into equal parts."""
    mesh = make_mesh(len(batch["image"]), 1, num_parts)
    return mesh, put_parts(mesh, batch, num_parts)


def compile_step(trainer, part, choice=None) -> dict[str, float]:
    """Measure the compilation of all programs of a training step; nothing is run.

    Args:
      trainer: a `training.step.Trainer`.
      part: the batch on the devices.
      choice: path of a supernet; None for a stand-alone network.

    Returns:
      `compile_seconds`, to trace and compile all programs; `temp_bytes`, temporary memory of the
      program that needs most.
    """
    start = time.perf_counter()
    temp_bytes = [
        program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
        for program, arguments in trainer.programs(part, choice)
    ]
    return {"compile_seconds": time.perf_counter() - start, "temp_bytes": max(temp_bytes)}


def stepper(trainer, parts, choice=None):
    """Return a function that takes one step, and the list that it appends the losses to.

    The function returns the state and the metrics after the step.
    """
    state, losses = [trainer.init()], []

    def step():
        state[0], metrics = trainer.step(state[0], parts, choice)
        losses.append(metrics["loss"])
        return state[0], metrics

    return step, losses


def medians(functions: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Return the median seconds of each function.

    Each is called once before, for its compilation. The timed calls are interleaved, so that a
    noisy machine treats all functions alike.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish_jobs(run, tasks: dict[str, dict], folder: pathlib.Path) -> dict[str, dict]:
    """Run tasks on the workers of a run; what is there is not run again.

    Args:
      run: the run.
      tasks: by name what `experiments.workers.task` returns.
      folder: folder that receives a folder and a file for each.

    Returns:
      By name `value`, what the task returned; `attempt`, its folder; `seconds`.
    """
    missing = {name: task for name, task in tasks.items() if not _end(folder, name).exists()}
    if missing:
        with workers.jobs(run) as jobs:
            for name, task in missing.items():
                jobs.begin(name, task, folder / name)
            while jobs.names:
                for end in jobs.wait():
                    if end.failure:
                        raise RuntimeError(f"{end.name}: {end.failure}")
                    content = {"value": end.value, "attempt": end.attempt, "seconds": end.seconds}
                    write_json(_end(folder, end.name), content)
                    print(f"{end.name}: {end.seconds:.0f} s", flush=True)
    return {name: json.loads(_end(folder, name).read_text()) for name in tasks}


def _end(folder, name):
    return folder / f"{name}.json"


def report(name: str, result: dict) -> None:
    """Print the result with the machine, and write both to `results/<name>_<platform>.json`."""
    device = jax.devices()[0]
    result = {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "commit": _commit(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        **result,
    }
    text = json.dumps(result, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}_{device.platform}.json").write_text(text + "\n")


def _commit():
    """Return the checkout's commit, with ", changed" when its code (not its results) has edits."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=RESULTS.parents[1])
    commit = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or "unknown"
    changed = run(["git", "status", "--porcelain", "crnas_jax", "benchmarks/*.py"]).stdout
    return commit + (", changed" if changed else "")
