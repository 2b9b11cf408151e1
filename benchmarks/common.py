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

import jax
import numpy as np

from crnas_jax.models.heads.box_head import BoxHeadOptions
from crnas_jax.models.heads.rpn import RPNOptions
from crnas_jax.models.rcnn import DetectorOptions
from crnas_jax.parallel.mesh import make_mesh, put_parts

RESULTS = pathlib.Path(__file__).parent / "results"
HALF_WIDTHS = (32, 64, 128, 256)


def detector_options(size: int) -> DetectorOptions:
    """The paper's neck and heads; below 512 pixels with proposals in proportion to the image."""
    if size >= 512:
        return DetectorOptions(classes=80)
    rpn = RPNOptions(pre_nms=(500, 250), post_nms=(250, 250))
    return DetectorOptions(80, 256, rpn, BoxHeadOptions(samples=128))


def random_batch(number: int, height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise with eight boxes an image."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 0.6, (number, 8, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (number, 8, 2))], -1)
    return {
        "image": rng.integers(0, 255, (number, height, width, 3), np.uint8),
        "image_size": np.full((number, 2), (height, width), np.int32),
        "boxes": (boxes * [width, height, width, height]).astype(np.float32),
        "labels": rng.integers(1, 81, (number, 8)).astype(np.int32),
        "valid": np.ones((number, 8), bool),
        "crowd": np.zeros((number, 8), bool),
        "weight": np.ones(number, np.float32),
        "image_id": np.arange(number, dtype=np.int64),
    }


def device_parts(batch: dict[str, np.ndarray], parts: int = 1):
    """The mesh of one device, and the batch on it."""
    mesh = make_mesh(len(batch["image"]), 1, parts)
    return mesh, put_parts(mesh, batch, parts)


def compile_step(trainer, part, choice=None) -> dict[str, float]:
    """Seconds to trace and compile all programs of a step, and the greatest temporary memory.

    Nothing is run.
    """
    began = time.perf_counter()
    temporary = [
        program.lower(*arguments).compile().memory_analysis().temp_size_in_bytes
        for program, arguments in trainer.programs(part, choice)
    ]
    return {"compile_seconds": time.perf_counter() - began, "temp_bytes": max(temporary)}


def stepper(trainer, parts, choice=None):
    """A function that takes one step and returns the state and metrics after it, and the list its
    losses go to.
    """
    state, losses = [trainer.init()], []

    def step():
        state[0], metrics = trainer.step(state[0], parts, choice)
        losses.append(metrics["loss"])
        return state[0], metrics

    return step, losses


def medians(runs: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each function, interleaved so that a noisy machine treats them alike.

    Each is run once before, for its compilation.
    """
    for run in runs.values():
        jax.block_until_ready(run())
    seconds = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def report(name: str, result: dict) -> None:
    """Prints the result with the machine and writes it to `results/`, or to --output."""
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
    """Of the checkout; "changed" when the code is not that commit's (results may be)."""
    run = functools.partial(subprocess.run, capture_output=True, text=True, cwd=RESULTS.parents[1])
    commit = run(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() or "unknown"
    changed = run(["git", "status", "--porcelain", "crnas_jax", "benchmarks/*.py"]).stdout
    return commit + (", changed" if changed else "")
