"""How several hosts end when one of them fails in a training: one fault of each kind.

Sixty at random moments of whole runs are in `test_random_host_faults`.
"""

import json
import os
import re
import signal

import pytest
from helpers import WHOLE, change_a_byte
from tiny_run import (
    BUG,
    HANG_SECONDS,
    HEARTBEAT_SECONDS,
    LOST,
    MISTAKE,
    OTHER,
    PRIMARY,
    STOPPED,
    Hosts,
    joint_flags,
    wait_until,
)

pytestmark = pytest.mark.campaign

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
            "--config.stage_train.checkpoint_seconds=0.1",
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

    def stop(self, hosts):
        """Ask for a stop after some further steps; return what the primary printed."""
        self.run_until_steps(hosts)
        hosts.processes[0].send_signal(signal.SIGTERM)
        (status, out, _), (other, *_) = hosts.wait()
        assert [status, other] == [STOPPED, STOPPED]
        return out


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("faults") / "run")


# Programs that a host has run when it meets its fault: some steps, and a checkpoint or two.
NUM_PROGRAMS = 30
# The host that meets a fault, the fault (`faulty.FAULTS`), the statuses, and what the screen of
# which host says.
FAULTS = {
    "primary killed": (PRIMARY, "killed", [LOST, LOST], OTHER, "host 0: lost"),
    "other killed": (OTHER, "killed", [LOST, LOST], PRIMARY, "host 1: lost"),
    "other killed in a save": (
        *(OTHER, "killed in a save", [LOST, LOST]),
        *(PRIMARY, "host 1: lost"),
    ),
    "supervisor killed": (OTHER, "supervisor killed", [LOST, -9], PRIMARY, "host 1: lost"),
    "asked to stop": (OTHER, "asked to stop", [STOPPED, STOPPED], PRIMARY, "stopped: "),
    "interrupted": (PRIMARY, "interrupted", [STOPPED, STOPPED], PRIMARY, "stopped: "),
    "primary stopped": (PRIMARY, "stopped", [LOST, LOST], PRIMARY, "--hang_seconds"),
    "bug": (OTHER, "bug", [BUG, BUG], PRIMARY, "host 1: KeyError"),
    "bug in a save": (OTHER, "bug in a save", [BUG, BUG], PRIMARY, "host 1: KeyError"),
    "hang": (OTHER, "hang", [LOST, LOST], PRIMARY, "--hang_seconds"),
    "full disk": (PRIMARY, "full disk", [MISTAKE, MISTAKE], PRIMARY, "make room"),
    "no numbers": (OTHER, "no numbers", [MISTAKE, MISTAKE], PRIMARY, "loss nan"),
    "unreadable image": (
        *(OTHER, "unreadable image", [MISTAKE, MISTAKE]),
        *(PRIMARY, "host 1: "),
    ),
}


# What is killed or asked in another way than a fault of the same kind.
_VARIANTS = ("supervisor killed", "interrupted", "bug")
only_whole = pytest.mark.skipif(not WHOLE, reason="a fault of its kind runs; see make campaigns")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=only_whole if name in _VARIANTS else ()) for name in FAULTS]
)
def test_every_host_ends_as_defined(training, tmp_path, name):
    """With one line on the screen; the training goes on from its last checkpoint."""
    faulty_host, fault, statuses, host, line = FAULTS[name]
    before = training.saved()
    faults = {faulty_host: (fault, NUM_PROGRAMS, tmp_path / "met")}
    results = training.start(faults=faults).wait(LIMIT + 60)
    _check_ends(results, statuses, host, line)
    if BUG not in statuses:
        assert "Traceback" not in results[host][2]
    steps = training.steps()
    assert len(steps) == len(set(steps))
    assert training.saved() > before


def _check_ends(results, statuses, host, line):
    """Check the statuses of all hosts, and the one line on the screen of one."""
    assert [status for status, *_ in results] == statuses, results
    screen = results[host][2]
    assert line in screen, screen
    assert screen.count("error: ") + screen.count("stopped: ") == 1, screen


def test_hosts_begin_again_by_themselves(training, tmp_path):
    before = training.saved()
    hosts = training.start(
        faults={OTHER: ("killed", NUM_PROGRAMS, tmp_path / "met")},
        own_flags={host: ["--restarts=1"] for host in (PRIMARY, OTHER)},
    )
    wait_until((tmp_path / "met").exists, 120)
    token = training.workdir / ".generation"
    first = token.read_text()
    wait_until(lambda: token.read_text() != first, 120)  # each beginning leaves its own
    training.stop(hosts)
    assert training.saved() > before


def test_hosts_with_another_config_are_refused(training):
    before = training.checkpoints()
    results = training.start(own_flags={OTHER: ["--config.seed=1"]}).wait(LIMIT)
    line = "host 1: config.seed: 1, on host 0 0"
    _check_ends(results, [MISTAKE, MISTAKE], PRIMARY, line)
    assert training.checkpoints() == before


def test_a_damaged_checkpoint_is_passed_over(training):
    """Once more on two processes: the one before it loads, on both."""
    if len(training.checkpoints()) < 2:  # no fault came before
        training.stop(training.start())
    intact, damaged = training.checkpoints()
    change_a_byte(training.folder / "checkpoints" / str(damaged))
    hosts = training.start()
    wait_until(lambda: (training.folder / "checkpoints" / f"unreadable-{damaged}").exists(), 120)
    out = training.stop(hosts)
    # The first line tells where it goes on; the damaged step is taken again.
    assert int(re.search(r"stage_supernet: step (\d+)/", out)[1]) == intact


def test_a_stopped_primary_that_wakes_after_a_restart_writes_nothing(training):
    """Where the mount does not honour locks, it sees that another run has gone on."""
    no_locks = {"faults": dict.fromkeys((0, 1), ("no locks", 0, os.devnull))}
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
    training.stop(second)
    assert (training.workdir / ".generation").read_text() == token
    steps = training.steps()
    assert steps == sorted(set(steps))


def test_folders_that_are_not_shared_are_refused(training, tmp_path):
    own = {host: [f"--workdir={tmp_path / str(host)}"] for host in (0, 1)}
    (status, _, err), (other, *_) = training.start(own_flags=own).wait()
    assert (status, other) == (MISTAKE, MISTAKE)
    assert "host 1 cannot see what host 0 writes there" in err
