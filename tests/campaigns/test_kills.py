"""A run killed at twenty random moments ends as if nothing had happened: `make test-full`."""

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT

pytestmark = pytest.mark.campaign

KILLS = 20
LOADING = 8.0  # seconds
TINY = [
    "--config.widths=(4,8,16,32)",
    "--config.supernet.widths=(4,8,16,32)",
    "--config.data.synthetic.train=64",
    "--config.data.synthetic.test=16",
    "--config.data.min_size=64",
    "--config.data.max_size=64",
    "--config.detector.pyramid_channels=16",
    "--config.detector.head_channels=32",
    "--config.search.batch_size=8",
    "--config.search.max_subnets_per_call=2",
    "--config.search.calibration_images=16",
    "--config.bootstrap=50",
]
RUN = [
    "--config=configs/quickstart.py:pretrain",
    *TINY,
    "--config.supernet.grids=((1,2),(1,2),(2,),(2,3))",
    "--config.data.synthetic.val=24",
    "--config.pretrain.networks=('stage_supernet','searched')",
    "--config.pretrain.epochs=1",
    "--config.pretrain.data.synthetic.train=256",
    *(
        f"--config.{recipe}.checkpoint_seconds=0.5"
        for recipe in ("stage_train", "operation_train", "detector_train", "pretrain")
    ),
]


@pytest.fixture
def log(tmp_path):
    """What all runs print."""
    with (tmp_path / "log").open("w") as file:
        yield file


def _start(workdir, log):
    command = [sys.executable, "scripts/run_crnas.py", *RUN, f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
    )


def _result(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return {name: value for name, value in result.items() if name != "seconds"}


def _phase(workdir):
    """The step a run was in: the last one with a folder or score."""
    if not workdir.exists():
        return "start"
    finished = {path.parent.name for path in workdir.glob("*/result.json")}
    begun = {path.name for path in workdir.iterdir() if path.is_dir()}
    if "stage_supernet" in finished and "stage_search" not in finished:
        return "stage_search"
    if "operation_supernet" in finished and "operation_search" not in finished:
        return "operation_search"
    return ",".join(sorted(begun - finished - {"search"})) or "start"


def _missing(phases):
    """The phases that no kill has met."""
    wanted = ("stage_search", "operation_search", "supernet", "searched", "baseline")
    return [name for name in wanted if not any(name in phase for phase in phases)]


def _reach(process, workdir, names):
    """Return when the run is in one of the phases, or over."""
    while process.poll() is None and not any(name in _phase(workdir) for name in names):
        time.sleep(0.1)


def test_twenty_kills_change_nothing(tmp_path, log):
    began = time.monotonic()
    assert _start(tmp_path / "warm", log).wait() == 0  # fills the compilation cache
    print(f"\nfirst run {time.monotonic() - began:.0f} s")
    began = time.monotonic()
    assert _start(tmp_path / "whole", log).wait() == 0
    total = time.monotonic() - began
    assert _result(tmp_path / "warm") == _result(tmp_path / "whole"), "two runs differ"
    began = time.monotonic()
    assert _start(tmp_path / "whole", log).wait() == 0  # nothing to do: the cost of starting
    startup = time.monotonic() - began
    print(f"whole run {total:.0f} s, of which starting {startup:.0f} s")

    rng = np.random.default_rng(int(os.environ.get("CAMPAIGN_SEED", "0")))
    phases, kills, runs = collections.Counter(), 0, 1
    cut = tmp_path / "cut1"
    # On average a twentieth of the work, and the programs of the step at hand to be loaded.
    reach = 2 * ((total - startup) / KILLS + LOADING)
    while kills < KILLS or _missing(phases):
        assert kills < 2 * KILLS, f"never killed in {_missing(phases)}"
        process = _start(cut, log)
        wait = rng.uniform(0.8 * startup, startup + reach)
        if kills >= KILLS:  # chance left a phase out: wait for it, then kill within
            _reach(process, cut, _missing(phases))
            wait = rng.uniform(0, 2)
        try:
            status = process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            phases[_phase(cut)] += 1
            continue
        assert status == 0, f"status {status}, see {tmp_path / 'log'}"
        _check(cut, tmp_path / "whole")
        runs += 1
        cut = tmp_path / f"cut{runs}"
    print(f"killed {kills} times in {runs} runs: {dict(phases)}")
    assert _start(cut, log).wait() == 0
    _check(cut, tmp_path / "whole")


def _check(cut, whole):
    """The same result; nothing scored twice."""
    assert _result(cut) == _result(whole)
    rows = [json.loads(line) for line in (cut / "journal.jsonl").read_text().splitlines()]
    scored = [(row["search"], tuple(row["code"])) for row in rows]
    assert len(scored) == len(set(scored)), "a journaled score was computed twice"
    assert len(scored) == len((whole / "journal.jsonl").read_text().splitlines())


def test_requests_to_stop_change_nothing(tmp_path, log):
    assert _start(tmp_path / "whole", log).wait() == 0
    rng, cut, stops = np.random.default_rng(1), tmp_path / "cut", 0
    for wait in rng.uniform(10, 40, 10):
        process = _start(cut, log)
        try:
            assert process.wait(wait) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            # 143 when work was in flight; -15 before the script listens; 0 just at the end.
            status = process.wait()
            assert status in (143, -15, 0)
            stops += status == 143
    assert stops > 3
    assert _start(cut, log).wait() == 0
    assert _result(cut) == _result(tmp_path / "whole")


SEARCH = [
    "--config=configs/quickstart.py",
    *TINY,
    "--config.supernet.grids=((1,2,3),(1,2,3),(1,2,3),(1,2,3))",
    "--config.data.synthetic.val=200",
    "--config.search.stage_strategy=halving",
]


def _search(workdir, log, script="search_stage"):
    command = [sys.executable, f"scripts/{script}.py", *SEARCH, f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
    )


def _kept(workdir):
    """Files with matches and statistics, and when they were written."""
    files = (workdir / "search").rglob("*.npz")
    return {file.relative_to(workdir): file.stat().st_mtime_ns for file in files}


def test_twenty_kills_of_a_search_repeat_nothing_that_was_kept(tmp_path, log):
    whole = tmp_path / "whole"
    assert _search(whole, log, "train_supernet").wait() == 0
    for name in ("warm", "cut1"):
        shutil.copytree(whole, tmp_path / name)
    assert _search(tmp_path / "warm", log).wait() == 0  # fills the compilation cache
    began = time.monotonic()
    assert _search(whole, log).wait() == 0
    total = time.monotonic() - began
    answer = _answer(whole)

    rng = np.random.default_rng(int(os.environ.get("CAMPAIGN_SEED", "0")))
    kills, met, cut, runs = 0, 0, tmp_path / "cut1", 1
    while kills < KILLS:
        before = _kept(cut)
        process = _search(cut, log)
        try:
            assert process.wait(rng.uniform(0.2, 0.9) * total) == 0
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            after = _kept(cut)
            over = not any(name.name.startswith("matches") for name in after)
            same = {name: after.get(name) for name in before} == before
            assert same or over, "kept work was repeated"
            met += after != before
            continue
        assert _answer(cut) == answer
        runs += 1
        cut = tmp_path / f"cut{runs}"
        shutil.copytree(tmp_path / "cut1", cut)
        for left in ("search", "stage_search", "journal.jsonl"):
            _remove(cut / left)
    assert _search(cut, log).wait() == 0
    assert _answer(cut) == answer
    print(f"\nsearch of {total:.0f} s killed {kills} times in {runs} runs, {met} with work kept")
    assert met > KILLS // 4


def _answer(workdir):
    """The result and every score, the time apart."""
    result = json.loads((workdir / "stage_search" / "result.json").read_text())
    rows = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    scored = {(tuple(row["code"]), row["batches"]): row["score"] for row in rows}
    assert len(scored) == len(rows), "a journaled score was computed twice"
    return {name: value for name, value in result.items() if name != "seconds"}, scored


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
