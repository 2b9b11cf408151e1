"""Runs killed at random moments end as if nothing had happened.

Three kills a campaign in `make test-full`; twenty, in every phase, in `make campaigns`.
"""

import collections
import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import ENVIRONMENT, KILLS, ROOT, WHOLE, campaign_rng
from tiny_run import TIMES, outcome, phase

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
]

LOADING = 8.0  # seconds to load the programs of a step
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
    "--config.stage_train.epochs=3",
]
RUN = [
    "--config=configs/quickstart.py:pretrain",
    *TINY,
    # Two allocations and few steps: what is learned is not what is tested. With a budget of its own
    # the found network is another than the baseline, whatever is learned.
    "--config.budget=7",
    "--config.supernet.grids=((1,2),(2,),(2,),(1,2))",
    "--config.data.synthetic.val=24",
    "--config.pretrain.networks=('stage_supernet','baseline')",
    "--config.pretrain.epochs=1",
    "--config.operation_train.epochs=1",
    "--config.detector_train.epochs=1.5",
    "--config.search.all_zero=continue",
    "--config.refine.operation_finalists=1",
    "--config.trained_bn_images=16",
    "--config.pretrain.data.synthetic.train=256",
    *(
        f"--config.{recipe}.checkpoint_seconds=0.5"
        for recipe in ("stage_train", "operation_train", "detector_train", "pretrain")
    ),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Return the file that all runs print to."""
    with (tmp_path_factory.mktemp("log") / "log").open("w") as file:
        yield file


def _start(workdir, log):
    command = [sys.executable, "scripts/run_crnas.py", *RUN, f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
    )


def _missing(phases, whole):
    """List the phases that no kill has met; none is missed where the campaign is not whole."""
    if not WHOLE:  # only a whole campaign has kills enough
        return []
    wanted = ("stage_search", "operation_search", "supernet", "finalists", "baseline", "seed1")
    steps = [str(path.parent.relative_to(whole)) for path in whole.rglob("key.json")]
    wanted = [name for name in wanted if any(name in step for step in steps)]
    return [name for name in wanted if not any(name in met for met in phases)]


def _finished_weights(workdir):
    """Return when the weights of finished trainings were written."""
    files = workdir.rglob("variables.sha256")
    return {path: path.stat().st_mtime_ns for path in files if "returned" not in str(path)}


def _reach(process, workdir, names):
    """Wait until the run is in one of the phases, or over."""
    while process.poll() is None and not any(name in phase(workdir) for name in names):
        time.sleep(0.1)


@dataclasses.dataclass(frozen=True)
class Uninterrupted:
    """A run from start to end.

    Attributes:
      path: its folder.
      total: seconds it took.
      startup: seconds that a run with nothing to do takes.
    """

    path: pathlib.Path
    total: float
    startup: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory, log):
    """Run twice, once to fill the compilation cache; both runs must give the same result."""
    folder = tmp_path_factory.mktemp("whole")
    first, total = (_seconds_of(_start(folder / name, log)) for name in ("warm", "whole"))
    assert outcome(folder / "warm") == outcome(folder / "whole"), "two runs differ"
    startup = _seconds_of(_start(folder / "whole", log))
    print(f"\nfirst run {first:.0f} s, second {total:.0f} s, of which starting {startup:.0f} s")
    return Uninterrupted(folder / "whole", total, startup)


def _seconds_of(process):
    began = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - began


def _interrupt(process, seconds, signal_number):
    """Send a signal after some seconds, unless the process has ended; return its status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal_number)
        return process.wait()


@pytest.mark.parametrize(
    ("signal_number", "statuses"),
    [
        pytest.param(signal.SIGKILL, (-9,), id="kill"),
        # 143 when work was in flight, -15 before the script listens.
        pytest.param(signal.SIGTERM, (143, -15), id="stop"),
    ],
)
def test_interruptions_change_nothing(tmp_path, log, whole, signal_number, statuses):
    rng = campaign_rng()
    phases, kills, runs, in_flight = collections.Counter(), 0, 1, 0
    cut = tmp_path / "cut1"
    # On average an equal share of the work for each kill, and time to load the step's programs.
    reach = 2 * ((whole.total - whole.startup) / KILLS + LOADING)
    while kills < KILLS or _missing(phases, whole.path):
        assert kills < 2 * KILLS, f"never interrupted in {_missing(phases, whole.path)}"
        weights = _finished_weights(cut)
        process = _start(cut, log)
        seconds = rng.uniform(0.8 * whole.startup, whole.startup + reach)
        if kills >= KILLS:  # chance left a phase out: wait for it, then interrupt within
            _reach(process, cut, _missing(phases, whole.path))
            seconds = rng.uniform(0, 2)
        status = _interrupt(process, seconds, signal_number)
        again = _finished_weights(cut)
        assert {path: again.get(path) for path in weights} == weights, "a training was repeated"
        if status in statuses:
            kills += 1
            in_flight += status == statuses[0]
            phases[phase(cut)] += 1
            continue
        assert status == 0, f"status {status}, see {log.name}"
        _check(cut, whole.path)
        runs += 1
        cut = tmp_path / f"cut{runs}"
    assert in_flight >= max(KILLS // 5, 1), f"work was in flight {in_flight} times of {kills}"
    print(f"\ninterrupted {kills} times in {runs} runs: {dict(phases)}")
    assert _start(cut, log).wait() == 0
    _check(cut, whole.path)


def _check(cut, whole):
    """Check that the results are equal and nothing was scored twice."""
    assert outcome(cut) == outcome(whole)
    rows = [json.loads(line) for line in (cut / "journal.jsonl").read_text().splitlines()]
    scored = [(row["search"], tuple(row["code"])) for row in rows]
    assert len(scored) == len(set(scored)), "a journaled score was computed twice"
    assert len(scored) == len((whole / "journal.jsonl").read_text().splitlines())


SEARCH = [
    "--config=configs/quickstart.py",
    *TINY,
    "--config.supernet.grids=((1,2,3),(1,2,3),(1,2,3),(1,2,3))",
    "--config.data.synthetic.val=120",
    "--config.search.stage_strategy=racing",
]


def _search(workdir, log, script="search_stage"):
    command = [sys.executable, f"scripts/{script}.py", *SEARCH, f"--workdir={workdir}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT
    )


def _cached(workdir):
    """Return the files with matches and statistics, and when they were written."""
    files = (workdir / "search").rglob("*.npz")
    return {file.relative_to(workdir): file.stat().st_mtime_ns for file in files}


def test_kills_of_a_search_repeat_nothing_that_was_saved(tmp_path, log):
    whole = tmp_path / "whole"
    assert _search(whole, log, "train_supernet").wait() == 0
    for name in ("warm", "cut1"):
        shutil.copytree(whole, tmp_path / name)
    assert _search(tmp_path / "warm", log).wait() == 0  # fills the compilation cache
    total = _seconds_of(_search(whole, log))
    answer = _answer(whole)

    rng = campaign_rng()
    kills, kills_with_work, cut, runs = 0, 0, tmp_path / "cut1", 1
    while kills < KILLS:
        before = _cached(cut)
        status = _interrupt(_search(cut, log), rng.uniform(0.2, 0.9) * total, signal.SIGKILL)
        if status == -9:
            kills += 1
            after = _cached(cut)
            cleared = not any(name.name.startswith("matches") for name in after)
            unchanged = {name: after.get(name) for name in before} == before
            assert unchanged or cleared, "saved work was repeated"
            kills_with_work += after != before
            continue
        assert status == 0, f"status {status}, see {log.name}"
        assert _answer(cut) == answer
        runs += 1
        cut = tmp_path / f"cut{runs}"
        shutil.copytree(tmp_path / "cut1", cut)
        for left in ("search", "stage_search", "journal.jsonl"):
            _remove(cut / left)
    assert _search(cut, log).wait() == 0
    assert _answer(cut) == answer
    print(f"\nsearch of {total:.0f} s killed {kills} times in {runs} runs, ", end="")
    print(f"{kills_with_work} with work saved")
    assert kills_with_work > KILLS // 4


def _answer(workdir):
    """Return the result and every score, without times."""
    result = json.loads((workdir / "stage_search" / "result.json").read_text())
    rows = [json.loads(line) for line in (workdir / "journal.jsonl").read_text().splitlines()]
    scored = {(tuple(row["code"]), row["batches"]): row["score"] for row in rows}
    assert len(scored) == len(rows), "a journaled score was computed twice"
    return {name: value for name, value in result.items() if name not in TIMES}, scored


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
