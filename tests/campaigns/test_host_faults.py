"""How several hosts end when one of them fails, and that nothing finished is lost.

One fault of each kind in `make test-full`; sixty at random moments in `make campaigns`.
"""

import collections
import contextlib
import json
import os
import re
import signal
import time

import numpy as np
import pytest
from helpers import change_a_byte
from tiny_run import (
    HANG_SECONDS,
    HEARTBEAT_SECONDS,
    STOPPED,
    Hosts,
    joint_flags,
    scored,
    wait_until,
)

pytestmark = pytest.mark.campaign

# A whole campaign, as in `test_kills`.
WHOLE = int(os.environ.get("CAMPAIGN_KILLS", "3")) >= 20
NUM_FAULTS = int(os.environ.get("CAMPAIGN_FAULTS", "60"))
LOST, MISTAKE, BUG = 75, 2, 1
# Seconds in which hosts must have ended: they may be loading when a host is lost.
LIMIT = HEARTBEAT_SECONDS + HANG_SECONDS + 30


class Training:
    """A supernet's training on two processes that would go on for hours, in one folder.

    Attributes:
      workdir: the working folder.
      folder: the training's.
    """

    def __init__(self, workdir):
        """Name the folder."""
        self.workdir, self.folder = workdir, workdir / "stage_supernet"
        self._flags = [
            *joint_flags(workdir),
            "--config.stage_train.epochs=100000",
            "--config.stage_train.checkpoint_seconds=0.5",
            "--config.stage_train.log_every=1",
        ]

    def start(self, **options):
        """Start the processes; see `Hosts.start`."""
        return Hosts.start(
            "train_supernet", *self._flags, num_devices=1, hang_seconds=HANG_SECONDS, **options
        )

    def steps(self):
        """Return the logged steps; each is logged once."""
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return [json.loads(line)["step"] for line in lines]

    def saved(self):
        """Return the last whole checkpoint's step."""
        return max(self.checkpoints(), default=0)

    def checkpoints(self):
        """Return the steps of all whole checkpoints."""
        names = [path.name for path in (self.folder / "checkpoints").glob("[0-9]*")]
        return sorted(int(name) for name in names if name.isdigit())

    def run_until_steps(self, hosts, count=4):
        """Wait until some further steps are logged."""
        begun = self.saved()
        wait_until(lambda: sum(step > begun for step in self.steps()[-50:]) >= count, 120)
        assert all(process.poll() is None for process in hosts.processes)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("faults") / "run")


def _signal(host, number, to_worker=True):
    """Return a function that sends a signal to a host's worker, or to its supervisor."""

    def send(hosts):
        os.kill(hosts.worker(host) if to_worker else hosts.processes[host].pid, number)

    return send


def _nothing(hosts):
    """Leave it to what the processes were started with."""


PRIMARY, OTHER = 0, 1
# Options of `Hosts.start`, what is done after some steps, the statuses, and what the screen of
# which host says.
FAULTS = {
    "primary killed": ({}, _signal(PRIMARY, 9), [LOST, LOST], OTHER, "host 0: lost"),
    "other killed": ({}, _signal(OTHER, 9), [LOST, LOST], PRIMARY, "host 1: lost"),
    "supervisor killed": ({}, _signal(OTHER, 9, False), [LOST, -9], PRIMARY, "host 1: lost"),
    "asked to stop": ({}, _signal(OTHER, 15, False), [STOPPED, STOPPED], PRIMARY, "stopped: "),
    "interrupted": ({}, _signal(PRIMARY, 2), [STOPPED, STOPPED], PRIMARY, "stopped: "),
    "primary stopped": ({}, _signal(PRIMARY, 19), [LOST, LOST], PRIMARY, "--hang_seconds"),
    "bug": ({"faults": {1: ("fail", 25)}}, _nothing, [BUG, BUG], PRIMARY, "host 1: KeyError"),
    "hang": ({"faults": {1: ("hang", 25)}}, _nothing, [LOST, LOST], PRIMARY, "--hang_seconds"),
    "full disk": (
        {"faults": {0: ("full disk", 25)}},
        *(_nothing, [MISTAKE, MISTAKE], PRIMARY, "make room"),
    ),
    "no numbers": (
        {"faults": {1: ("no numbers", 25)}},
        *(_nothing, [MISTAKE, MISTAKE], PRIMARY, "loss nan"),
    ),
    "another config": (
        {"own_flags": {1: ["--config.seed=1"]}},
        *(_nothing, [MISTAKE, MISTAKE], PRIMARY, "host 1: config.seed: 1, on host 0 0"),
    ),
}


# What is killed or asked in another way than a fault of the same kind.
_VARIANTS = ("supervisor killed", "interrupted")
only_whole = pytest.mark.skipif(not WHOLE, reason="a fault of its kind runs; see make campaigns")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=only_whole if name in _VARIANTS else ()) for name in FAULTS]
)
def test_every_host_ends_as_defined(training, name):
    """With one line on the screen; the training goes on from its last checkpoint."""
    options, act, statuses, host, line = FAULTS[name]
    before = training.saved()
    hosts = training.start(**options)
    if act is not _nothing:
        training.run_until_steps(hosts)
        act(hosts)
    results = hosts.wait(LIMIT + 60)
    assert [status for status, *_ in results] == statuses, results
    screen = results[host][2]
    assert line in screen, screen
    assert screen.count("error: ") + screen.count("stopped: ") == 1, screen
    if name != "bug":
        assert "Traceback" not in screen
    assert training.saved() >= before
    steps = training.steps()
    assert len(steps) == len(set(steps))
    if act is not _nothing:
        assert training.saved() > before


def test_a_damaged_checkpoint_is_passed_over(training):
    """Once more on two processes: the one before it loads, on both."""
    intact, damaged = training.checkpoints()
    change_a_byte(training.folder / "checkpoints" / str(damaged))
    hosts = training.start()
    wait_until(lambda: (training.folder / "checkpoints" / f"unreadable-{damaged}").exists(), 120)
    training.run_until_steps(hosts)
    hosts.processes[0].send_signal(signal.SIGTERM)
    (status, out, _), _ = hosts.wait()
    assert status == STOPPED
    # The first line tells where it goes on; the damaged step is taken again.
    assert int(re.search(r"stage_supernet: step (\d+)/", out)[1]) == intact


def test_a_stopped_primary_that_wakes_after_a_restart_writes_nothing(training):
    """Where the mount does not honour locks, it sees that another run has gone on."""
    no_locks = {"faults": dict.fromkeys((0, 1), ("no locks", 0))}
    first = training.start(**no_locks)
    training.run_until_steps(first)
    stopped = [first.processes[0].pid, first.worker(0)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    second = training.start(**no_locks)
    _, err = first.processes[1].communicate(timeout=LIMIT)
    assert first.processes[1].returncode == LOST, err
    training.run_until_steps(second)
    token = (training.workdir / ".generation").read_text()
    for pid in reversed(stopped):
        os.kill(pid, signal.SIGCONT)
    first.processes[0].communicate(timeout=LIMIT)
    assert first.processes[0].returncode in (MISTAKE, LOST)
    training.run_until_steps(second)
    second.processes[0].send_signal(signal.SIGTERM)
    assert [status for status, *_ in second.wait()] == [STOPPED, STOPPED]
    assert (training.workdir / ".generation").read_text() == token
    steps = training.steps()
    assert steps == sorted(set(steps))


def test_folders_that_are_not_shared_are_refused(training, tmp_path):
    own = {host: [f"--workdir={tmp_path / str(host)}"] for host in (0, 1)}
    (status, _, err), (other, *_) = training.start(own_flags=own).wait()
    assert (status, other) == (MISTAKE, MISTAKE)
    assert "host 1 cannot see what host 0 writes there" in err


# What may befall hosts at any moment of a run: like `FAULTS`, but with any status that is fair
# there, since the run may end first, or be loading.
_ENDS = {0, LOST, STOPPED}
RANDOM_FAULTS = {
    "primary killed": (None, _signal(PRIMARY, 9), _ENDS),
    "other killed": (None, _signal(OTHER, 9), _ENDS),
    "supervisor killed": (None, _signal(PRIMARY, 9, False), {*_ENDS, -9}),
    "asked to stop": (None, _signal(OTHER, 15, False), {0, STOPPED}),
    "other stopped": (None, _signal(OTHER, 19), _ENDS),
    "bug": ((OTHER, "fail"), None, {0, BUG}),
    "bug of the primary": ((PRIMARY, "fail"), None, {0, BUG}),
    "hang": ((OTHER, "hang"), None, _ENDS),
    "full disk": ((PRIMARY, "full disk"), None, {0, MISTAKE}),
    "torn files": (None, _signal(PRIMARY, 9), _ENDS),
    "damaged checkpoint": (None, _signal(OTHER, 9), _ENDS),
}


def _tear(workdir):
    """Leave the files as a crash of the machine would."""
    with (workdir / "journal.jsonl").open("a") as file:
        file.write('{"format": 2, "search": "st')
    for file in workdir.glob("*/metrics.jsonl"):
        with file.open("a") as log:
            log.write('{"step": 9')
    (workdir / "config.json.tmp").write_text("{")


def _damage(workdir):
    """Change a byte of the last checkpoint of a training that is not finished."""
    for folder in workdir.glob("*/checkpoints"):
        steps = sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
        if len(steps) > 1 and not (folder.parent / "result.json").exists():
            change_a_byte(folder / str(steps[-1]))


@pytest.mark.skipif(not WHOLE, reason="sixty faults; see make campaigns")
def test_sixty_faults_at_random_moments_lose_nothing_finished(tmp_path):
    """No finished step or score is lost or repeated; the decision is that of a run without faults.

    The runs go on on two processes; after one that ends, the next faults meet a new one.
    """
    rng = np.random.default_rng(int(os.environ.get("CAMPAIGN_SEED", "0")))
    frequent = [
        f"--config.{recipe}.{field}"
        for recipe in ("stage_train", "operation_train", "detector_train")
        for field in ("checkpoint_seconds=0.1", "epochs=10")
    ]
    expected, total = None, 0.0
    table, number, runs = collections.Counter(), 0, 0
    names = [name for name in RANDOM_FAULTS for _ in range(6)][:NUM_FAULTS]
    rng.shuffle(names)
    workdir = tmp_path / "whole"
    start = time.monotonic()
    (status, *_), _ = Hosts.start("run_crnas", *joint_flags(workdir), *frequent).wait(900)
    assert status == 0
    total, expected = time.monotonic() - start, _finished(workdir)
    while number < len(names):
        runs += 1
        workdir, status = tmp_path / f"run{runs}", None
        flags = [*joint_flags(workdir), *frequent]
        while status != 0 and number < len(names):
            name = names[number]
            status = _one_fault(name, workdir, flags, rng.uniform(5, 60), table)
            number += 1
        print(f"run {runs}: {number} faults", flush=True)
    (status, _, err), _ = Hosts.start("run_crnas", *flags).wait(900)
    assert status == 0, err
    assert _finished(workdir).keys() == expected.keys()
    print(f"\n{number} faults in {runs} runs of {total:.0f} s without any:")
    for (name, phase), count in sorted(table.items()):
        print(f"{count:3} {name}, {phase}")


def _finished(workdir):
    """Return the results of finished steps, as they stand in their files."""
    return {
        str(file.relative_to(workdir)): file.read_text()
        for file in workdir.rglob("result.json")
        if file.parent != workdir and "set_aside" not in file.parts
    }


def _phase(workdir):
    """Return the step that was begun last."""
    begun = [
        file for file in workdir.rglob("key.json") if not file.with_name("result.json").exists()
    ]
    latest = max(begun, key=lambda file: file.stat().st_mtime, default=None)
    return "between steps" if latest is None else str(latest.parent.relative_to(workdir))


def _one_fault(name, workdir, flags, moment, table):
    """Have a run meet a fault; check that nothing finished is lost; return its status."""
    fault, act, statuses = RANDOM_FAULTS[name]
    finished = _finished(workdir)
    scores = scored(workdir) if (workdir / "journal.jsonl").exists() else {}
    faults = {fault[0]: (fault[1], moment)} if fault else {}
    hosts = Hosts.start("run_crnas", *flags, hang_seconds=HANG_SECONDS * 2, faults=faults)
    if act is not None:
        end = time.monotonic() + moment
        while time.monotonic() < end and hosts.processes[0].poll() is None:
            time.sleep(0.1)
        with contextlib.suppress(OSError, IndexError):  # it had come to its end
            act(hosts)
    if name == "other stopped":
        time.sleep(HEARTBEAT_SECONDS + 5)
        with contextlib.suppress(OSError, IndexError):
            _signal(OTHER, signal.SIGCONT)(hosts)
    results = hosts.wait(LIMIT if act else 300)
    assert {status for status, *_ in results} <= statuses, (name, results)
    table[name, _phase(workdir)] += 1
    if name == "torn files" and (workdir / "journal.jsonl").exists():
        _tear(workdir)
    if name == "damaged checkpoint":
        _damage(workdir)
    after = _finished(workdir)
    assert {step: after.get(step) for step in finished} == finished
    if (workdir / "journal.jsonl").exists() and name != "torn files":
        now = scored(workdir)
        assert {key: now.get(key) for key in scores} == scores
    return results[0][0]
