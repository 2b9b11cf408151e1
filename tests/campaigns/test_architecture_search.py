"""SpineNet's search with real trainings, on two workers: from start to end, and killed.

Three kills in `make test-full`, twenty in `make campaigns`.
"""

import collections
import functools
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from helpers import ENVIRONMENT, KILLS, ROOT, campaign_rng, four_blocks
from tiny_run import outcome

from configs import search_spinenet
from crnas_jax.data.synthetic import SyntheticSource
from crnas_jax.experiments import remote
from crnas_jax.runtime.files import whole_lines
from crnas_jax.settings import data as data_settings
from crnas_jax.settings import models as model_settings
from crnas_jax.settings import training as training_settings
from crnas_jax.training.job import TrainingJob

pytestmark = [pytest.mark.campaign, pytest.mark.programs]

FLAGS = [
    "--config=configs/search_spinenet.py:quick",
    "--config.space.levels=(2,4)",
    "--config.detector.anchor_sizes=(16.0,32.0)",
    "--config.detector.head_convolutions=1",
    "--config.data.synthetic.train=32",
    "--config.data.synthetic.val=16",
    "--config.data.synthetic.test=8",
    *(
        f"--config.{section}.{side}=64"
        for section in ("data", "proxy")
        for side in ("min_size", "max_size")
    ),
    "--config.proxy.width_scale=0.0625",
    "--config.proxy.endpoint_channels=16",
    "--config.proxy.epochs=3",
    "--config.proxy.warmup_steps=5",
    "--config.detector_train.epochs=1",
    "--config.proxy.checkpoint_seconds=2",
    "--config.detector_train.checkpoint_seconds=2",
    "--config.search.evaluations=4",
    "--config.search.all_zero=continue",
    "--config.search.population=2",
    "--config.refine.finalists=0",
    "--config.refine.seeds=1",
    "--config.erf_images=0",
    "--config.bootstrap=10",
    "--config.trained_bn_images=8",
    "--config.executor.workers=2",
]
# What is killed, in turn; a stop is a SIGTERM that the controller answers.
KINDS = ("worker", "controller", "stop")
# What a journal says of workers and times.
BESIDE = ("worker", "attempt", "seconds", "seconds_of")


def _start(workdir):
    table = workdir.with_name("four_blocks.json")
    table.write_text(four_blocks().to_json())
    flags = [*FLAGS, f"--config.baseline={table}", f"--workdir={workdir}"]
    with workdir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "scripts/run_spinenet.py", *flags],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )


def _log(workdir):
    return workdir.with_suffix(".log").read_text()[-2000:]


def _workers(controller):
    """Return the process ids of a controller's attempts."""
    children = pathlib.Path(f"/proc/{controller.pid}/task/{controller.pid}/children")
    try:
        return [int(name) for name in children.read_text().split()]
    except OSError:
        return []


def _journal(workdir):
    """Return the journal's rows without times and workers, by search and candidate."""
    rows = [json.loads(line) for line in whole_lines(workdir / "journal.jsonl", repair=False)]
    scores = {
        (row["search"], tuple(row["code"])): {
            name: value for name, value in row.items() if name not in BESIDE
        }
        for row in rows
    }
    assert len(scores) == len(rows), "a candidate was scored twice"
    return scores


def _has_others(workdir, earlier):
    return not _checkpoints(workdir) <= earlier


def _wait(process, seconds, event=lambda: True):
    """Wait for an event and for some seconds after it, at most until the process ends."""
    while process.poll() is None and not event():
        time.sleep(0.05)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def _checkpoints(workdir):
    """Return the whole checkpoints of candidates in training."""
    files = (workdir / "candidates").glob("*/attempts/*/checkpoints/*")
    return {file for file in files if file.name.isdigit()}


def _require_resumed(workdir):
    """Check that each attempt began at the newest checkpoint of those before; return how many."""
    resumed = 0
    for candidate in (workdir / "candidates").iterdir():
        newest = 0
        for attempt in sorted((candidate / "attempts").iterdir(), key=lambda path: int(path.name)):
            log = workdir / "logs" / "attempts" / f"{candidate.name}.{attempt.name}.txt"
            begun = re.search(r"training: step (\d+)/", log.read_text())
            if begun:  # it was not killed before that
                assert int(begun[1]) == newest, f"{candidate.name}, attempt {attempt.name}"
                resumed += newest > 0
            steps = [path.name for path in (attempt / "checkpoints").glob("*")]
            newest = max([newest, *(int(name) for name in steps if name.isdigit())])
    return resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Search, train the networks that are compared, and decide, without an interruption."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    process = _start(workdir)
    assert process.wait() == 0, _log(workdir)
    return workdir


def test_a_search_runs_from_images_to_a_decision(whole):
    result = json.loads((whole / "result.json").read_text())
    search = result["architecture_search"]
    assert search["failed"] == search["rejected"] == 0
    rows = _journal(whole)
    proposals = whole_lines(whole / "architecture_search" / "proposals.jsonl", repair=False)
    graphs = {tuple(json.loads(line)["graph"]) for line in proposals}
    assert len(proposals) == 4
    assert search["evaluated"] == len(graphs)
    trained = {code for name, code in rows if name == "candidates"}
    assert graphs <= trained
    assert len(trained) <= len(graphs) + 1  # and the seed network
    assert search["score"] == max(rows["candidates", graph]["score"] for graph in graphs)
    for row in (row for (name, _), row in rows.items() if name == "candidates"):
        assert row["curve"][-1][1] < row["curve"][0][1], "the loss does not fall"
        assert (whole / "candidates" / row["candidate"]).is_dir()


def test_kills_of_controller_or_workers_change_nothing(whole, tmp_path):
    rng, kills, runs, resumed = campaign_rng(), collections.Counter(), 1, 0
    cut = tmp_path / "cut1"
    process = _start(cut)
    while (number := sum(kills.values())) < KILLS:
        if number % 2:  # at any moment, such as while workers start and compile
            _wait(process, rng.uniform(2, 12))
        else:  # soon after a checkpoint, from which the next attempt goes on
            _wait(
                process, rng.uniform(0, 1), functools.partial(_has_others, cut, _checkpoints(cut))
            )
        if process.poll() is not None:
            resumed += _check(process, cut, whole)
            runs += 1
            cut = tmp_path / f"cut{runs}"
            process = _start(cut)
            continue
        kind = KINDS[number % len(KINDS)]
        if kind == "worker":
            workers = _workers(process)
            if workers:
                os.kill(int(rng.choice(workers)), signal.SIGKILL)
                kills[kind] += 1
        elif (cut / "logs" / "attempts").exists():  # a training has begun
            process.send_signal(signal.SIGKILL if kind == "controller" else signal.SIGTERM)
            status = process.wait()
            # -15 before the command listens, as it starts again.
            assert status in {"controller": (-9,), "stop": (143, -15, 0)}[kind], _log(cut)
            kills[kind] += 1
            process = _start(cut)
    process.wait()
    resumed += _check(process, cut, whole)
    print(f"\nkilled {dict(kills)} in {runs} runs; {resumed} attempts went on from a checkpoint")


def _check(process, cut, whole):
    """Check that a run has ended as the whole one did; return how many attempts went on."""
    assert process.returncode == 0, _log(cut)
    assert _journal(cut) == _journal(whole)
    names = [run / "architecture_search" / "proposals.jsonl" for run in (cut, whole)]
    assert names[0].read_text() == names[1].read_text()
    (result, weights), (whole_result, whole_weights) = outcome(cut), outcome(whole)
    assert result == whole_result
    # The attempt that ended differs.
    by_name, whole_by_name = (
        {re.sub(r"/attempts/\d+", "", name): value for name, value in digests.items()}
        for digests in (weights, whole_weights)
    )
    assert by_name == whole_by_name
    return _require_resumed(cut)


def test_a_steps_memory_is_that_of_its_arrays_and_more():
    config = search_spinenet.get_config("quick")
    with config.unlocked():
        config.data.synthetic.update({"train": 4, "val": 4, "test": 4})
        config.detector.anchor_sizes = (16.0, 32.0)
        config.devices = 1
        config.data.min_size = config.data.max_size = 64
    detector = model_settings.detector(config, four_blocks(), 3)
    job = TrainingJob(
        "training",
        detector,
        SyntheticSource(4, 64),
        data_settings.detection_rows(config),
        training_settings.train_options(config, "detector_train"),
    )
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(detector.shapes["params"]))
    # Parameters, momentum and gradients, 4 bytes each; images as they are read, 1 byte a value.
    least = 3 * 4 * size + 4 * 64 * 64 * 3
    assert least < remote.step_memory(config, job) < 1e9
