"""Sixty faults at random moments of whole runs on two processes lose nothing that was finished.

It is run by `make campaigns` alone; one fault of each kind is in `test_host_faults`.
"""

import collections
import os
import time

import pytest
from helpers import WHOLE, campaign_rng, change_a_byte
from tiny_run import (
    BUG,
    HANG_SECONDS,
    LOST,
    MISTAKE,
    OTHER,
    PRIMARY,
    STOPPED,
    Hosts,
    joint_flags,
    outcome,
    phase,
    scored,
)

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.skipif(not WHOLE, reason="sixty faults; see make campaigns"),
]

NUM_FAULTS = int(os.environ.get("CAMPAIGN_FAULTS", "60"))
# Programs that a host runs at most until it meets its fault: few, so that a run meets several.
MAX_PROGRAMS = 80
# Seconds from a fault to the end of all processes: a save or a write may have to come first.
LIMIT = 120
# The host that meets a fault, the fault (`faulty.FAULTS`), and how the processes may end: by a
# signal where it ends a supervisor.
FAULTS = {
    "primary killed": (PRIMARY, "killed", {LOST}),
    "other killed": (OTHER, "killed", {LOST}),
    "primary killed in a save": (PRIMARY, "killed in a save", {LOST}),
    "other killed in a save": (OTHER, "killed in a save", {LOST}),
    "primary killed in a write": (PRIMARY, "killed in a write", {LOST}),
    "supervisor killed": (PRIMARY, "supervisor killed", {LOST, -9}),
    "other asked to stop": (OTHER, "asked to stop", {STOPPED}),
    "other paused": (OTHER, "paused", {LOST}),
    "bug of the primary": (PRIMARY, "bug", {BUG}),
    "bug of the other": (OTHER, "bug", {BUG}),
    "hang": (OTHER, "hang", {LOST}),
    "full disk": (PRIMARY, "full disk", {MISTAKE}),
    "unreadable image": (OTHER, "unreadable image", {MISTAKE}),
    "torn files": (PRIMARY, "killed", {LOST}),
    "damaged checkpoint": (OTHER, "killed", {LOST}),
}
DONE = 0


def _flags(workdir):
    """Return the flags of a run whose trainings save often, and whose result has no times."""
    frequent = [
        f"--config.{recipe}.{field}"
        for recipe in ("stage_train", "operation_train", "detector_train")
        for field in ("checkpoint_seconds=0.1", "epochs=4")
    ]
    return [*joint_flags(workdir), *frequent, "--config.search.max_latency=0.0"]


def test_sixty_faults_lose_nothing_finished(tmp_path):
    """The result, all weights and all scores are those of a run without faults.

    Runs go on on two processes; after one that ends, the next faults meet a new one.
    """
    rng = campaign_rng()
    expected = tmp_path / "whole"
    start = time.monotonic()
    (status, _, err), _ = Hosts.start("run_crnas", *_flags(expected)).wait(900)
    assert status == DONE, err
    print(f"a run without faults: {time.monotonic() - start:.0f} s", flush=True)
    table, slowest = collections.Counter(), 0.0
    workdir, num_runs = tmp_path / "run1", 1
    names = []
    while table.total() < NUM_FAULTS:
        names = names or list(rng.permutation(list(FAULTS)))
        name, count = str(names.pop()), int(rng.integers(1, MAX_PROGRAMS + 1))
        status, where, seconds = _meet(name, count, workdir)
        print(f"run {num_runs}: {name}, program {count}, {where}, {status}, {seconds:.0f} s")
        if status != DONE:
            table[name, where] += 1
            slowest = max(slowest, seconds)
        else:
            _check_same(workdir, expected)
            num_runs += 1
            workdir = tmp_path / f"run{num_runs}"
    (status, _, err), _ = Hosts.start("run_crnas", *_flags(workdir)).wait(900)
    assert status == DONE, err
    _check_same(workdir, expected)
    print(f"{table.total()} faults in {num_runs} runs; the slowest end after {slowest:.0f} s:")
    for (name, where), count in sorted(table.items()):
        print(f"{count:3} {name}, {where}")


def _check_same(workdir, expected):
    assert outcome(workdir) == outcome(expected)
    assert scored(workdir) == scored(expected)


def _meet(name, count, workdir):
    """Have a run meet a fault, and check that nothing finished is lost.

    Returns:
      The first process's status, the step that the run was in, and the seconds from the fault to
      the end of all processes; 0 where the run ended before.
    """
    host, fault, statuses = FAULTS[name]
    finished, scores = _finished(workdir), _scores(workdir)
    met = workdir.with_name("met")
    met.unlink(missing_ok=True)
    hosts = Hosts.start(
        *("run_crnas", *_flags(workdir)),
        hang_seconds=HANG_SECONDS * 2,
        faults={host: (fault, count, met)},
    )
    results = hosts.wait(600)
    ends = {status for status, *_ in results}
    assert ends in ({DONE}, statuses), (name, results)
    assert met.exists() or ends == {DONE}
    seconds = time.time() - met.stat().st_mtime if met.exists() else 0.0
    assert seconds < LIMIT, (name, results)
    where = "the end" if ends == {DONE} else phase(workdir)
    if name == "torn files":
        _tear(workdir)
    if name == "damaged checkpoint":
        _damage(workdir)
    after, now = _finished(workdir), _scores(workdir)
    assert {step: after.get(step) for step in finished} == finished
    assert {key: now.get(key) for key in scores} == scores
    return results[0][0], where, seconds


def _finished(workdir):
    """Return the results of finished steps, as they stand in their files."""
    return {
        str(file.relative_to(workdir)): file.read_text()
        for file in workdir.rglob("result.json")
        if file.parent != workdir and "set_aside" not in file.parts
    }


def _scores(workdir):
    """Return the journal's scores; none where it is not begun."""
    file = workdir / "journal.jsonl"
    return scored(workdir) if file.exists() else {}


def _tear(workdir):
    """Leave the files as a crash of the machine would."""
    for file in (*workdir.glob("journal.jsonl"), *workdir.glob("*/metrics.jsonl")):
        with file.open("a") as log:
            log.write('{"format": 2, "step": 9')
    if workdir.exists():
        (workdir / "config.json.tmp").write_text("{")


def _damage(workdir):
    """Change a byte of the last checkpoint of a training that is not finished."""
    for folder in workdir.glob("*/checkpoints"):
        steps = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
        if len(steps) > 1 and not (folder.parent / "result.json").exists():
            change_a_byte(folder / str(steps[-1]))
