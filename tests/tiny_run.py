"""The whole procedure on a tiny synthetic set, and starting it on one or two processes."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from helpers import ENVIRONMENT, ROOT
from orbax.checkpoint import v1 as ocp

from crnas_jax.arch.staged import Arch
from crnas_jax.runtime.files import digest

TINY = [
    "--config=configs/quickstart.py",
    "--config.widths=(4,8,16,32)",
    "--config.supernet.widths=(4,8,16,32)",
    "--config.supernet.grids=((1,2),(2,),(1,),(1,2))",
    "--config.data.synthetic.train=16",
    "--config.data.synthetic.val=32",
    "--config.data.synthetic.test=8",
    "--config.data.min_size=64",
    "--config.data.max_size=64",
    "--config.detector.pyramid_channels=16",
    "--config.detector.head_channels=32",
    "--config.detector.rpn_samples=32",
    "--config.detector.pre_nms=(40,40)",
    "--config.detector.post_nms=(20,20)",
    "--config.detector.roi_samples=16",
    "--config.detector.nms_candidates=40",
    "--config.stage_train.epochs=1",
    "--config.operation_train.epochs=1",
    "--config.detector_train.epochs=1",
    "--config.search.batch_size=8",
    "--config.search.calibration_images=8",
    "--config.bootstrap=10",
    "--config.erf_images=0",
    "--config.search.all_zero=continue",
    "--config.trained_bn_images=8",
    "--config.refine.finalists=2",
    "--config.refine.operation_finalists=1",
    "--config.refine.short=1.0",  # so that finalists and last rung share programs
]
# For eight devices. The baseline costs less than the budget: it is none of the finalists, and the
# found network is another one whatever is learnt.
JOINT = [
    *TINY,
    *(
        f"--config.{recipe}.batch_size=8"
        for recipe in ("stage_train", "operation_train", "detector_train")
    ),
    "--config.devices=0",
    "--config.budget=6",
    "--config.data.synthetic.val=16",
    "--config.refine.operation_finalists=0",
    "--config.search.max_latency=1e6",
    "--config.erf_images=2",
]
NUM_HOSTS, DEVICES_EACH = 2, 4
TIMES = ("seconds", "finished")  # of a result
PRIMARY, OTHER = 0, 1
# Statuses: another host was lost, a mistake, a bug, a run that was asked to stop.
LOST, MISTAKE, BUG, STOPPED = 75, 2, 1, 143
HEARTBEAT_SECONDS, HANG_SECONDS = 10, 20  # the latter where steps take no second


def baseline(workdir, depths):
    """Return the flag of a baseline, in a file beside the working folder."""
    file = workdir.with_name("baseline.json")
    file.write_text(Arch("resnet_basic", depths).to_json())
    return f"--config.baseline={file}"


def joint_flags(workdir):
    """Return the flags of a run on several hosts."""
    return [*JOINT, baseline(workdir, (1, 1, 1, 2)), f"--workdir={workdir}"]


def start(script, *flags, num_devices=DEVICES_EACH, fault=()):
    """Start a script as a user does, in a process of its own with some virtual devices.

    Args:
      script: name in `scripts/`.
      *flags: its flags.
      num_devices: virtual devices.
      fault: name of a fault of `faulty.FAULTS`, the number of programs after which it meets it, and
        a file that is made then; a process that is begun again meets it no more.
    """
    count = f"--xla_force_host_platform_device_count={num_devices}"
    faulty = ["tests/faulty.py", *map(str, fault)] if fault else []
    return subprocess.Popen(
        [sys.executable, *faulty, f"scripts/{script}.py", *flags],
        cwd=ROOT,
        env={**ENVIRONMENT, "XLA_FLAGS": f"{ENVIRONMENT['XLA_FLAGS']} {count}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclasses.dataclass
class Hosts:
    """A script on two processes, each with four virtual devices.

    Attributes:
      processes: the supervisors.
    """

    processes: list

    @classmethod
    def start(
        cls,
        script,
        *flags,
        num_devices=DEVICES_EACH,
        hang_seconds=120,
        faults=None,
        own_flags=None,
    ):
        """Start the processes.

        Args:
          script: name in `scripts/`.
          *flags: its flags.
          num_devices: virtual devices of each.
          hang_seconds: longest wait in a step or for the other.
          faults: by host a fault, see `start`.
          own_flags: by host further flags.
        """
        joint = [
            f"--coordinator=localhost:{free_port()}",
            f"--num_processes={NUM_HOSTS}",
            f"--heartbeat_seconds={HEARTBEAT_SECONDS}",
            f"--hang_seconds={hang_seconds}",
        ]
        faults, own_flags = faults or {}, own_flags or {}
        return cls(
            [
                start(
                    script,
                    *(*flags, *joint, f"--process_id={host}", *own_flags.get(host, ())),
                    num_devices=num_devices,
                    fault=faults.get(host, ()),
                )
                for host in range(NUM_HOSTS)
            ]
        )

    @classmethod
    def run(cls, script, *flags):
        """Run a script to its end on both processes, without an error; return its stdout."""
        (status, out, err), (other, *_) = cls.start(script, *flags).wait()
        assert (status, other) == (0, 0), err
        return out

    def wait(self, seconds=300.0):
        """Return (status, stdout, stderr) of each process; none may take longer."""
        end = time.monotonic() + seconds
        try:
            results = []
            for process in self.processes:
                out, err = process.communicate(timeout=max(end - time.monotonic(), 1.0))
                results.append((process.returncode, out, err))
            return results
        finally:
            self.kill()

    def worker(self, index):
        """Return the process id of the working process of a host."""
        children = f"/proc/{self.processes[index].pid}/task/{self.processes[index].pid}/children"
        return int(pathlib.Path(children).read_text().split()[0])

    def kill(self):
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def scored(workdir):
    """Return the journal's scores but a torn last line; none may be in it twice."""
    *lines, _ = (workdir / "journal.jsonl").read_text().split("\n")
    rows = [json.loads(line) for line in lines]
    scores = {
        (row["config"], row["search"], tuple(row["code"]), row["batches"]): row["score"]
        for row in rows
    }
    assert len(scores) == len(rows)
    return scores


def check_result(workdir):
    """Check that the result of a run keeps its contract; return it."""
    result = json.loads((workdir / "result.json").read_text())
    assert result["stage_search"]["evaluated"] == 2
    assert 2 + 4 + 6 + 6 + 2 <= result["operation_search"]["evaluated"] <= 2 + 4 + 6 + 6 + 4
    decided = ("baseline", "stage_only", "searched")
    for network in decided:
        assert {"arch", "flops", "params", "AP", "AP50", "ARl", "per_class"} <= set(result[network])
        mean = sum(row["AP"] for row in result[network]["seeds"]) / len(result[network]["seeds"])
        assert result[network]["AP"] == pytest.approx(mean)
    rows = result["finalists"]["allocation"]
    assert {tuple(row["arch"]["depths"]) for row in rows} == {(1, 2, 1, 2), (2, 2, 1, 1)}
    assert all(0 <= row["AP"] <= 1 and 0 <= row["supernet_score"] <= 1 for row in rows)
    assert len(result["finalists"]["network"]) in (0, 2)  # none where ones were found
    decision = result["decision"]
    assert decision["network"] == result["returned"] in decided
    assert {"probability", "difference", "ci95", "reason"} <= set(decision)
    # What is published is the decided network, trained with the run's seed.
    same = [name for name in decided if result[name]["arch"] == result[decision["network"]]["arch"]]
    digest = (workdir / "returned" / "variables.sha256").read_text()
    assert digest == (workdir / same[0] / "variables.sha256").read_text()
    seconds = dict(result["seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()), abs=0.1)
    low, high = result["difference"]["ci95"]
    assert low <= result["difference"]["AP"] <= high
    scored(workdir)
    return result


def outcome(workdir):
    """Return the result of a run without times, and digests of all weights."""
    result = json.loads((workdir / "result.json").read_text())
    digests = {}
    for folder in workdir.rglob("variables"):
        leaves = jax.tree.leaves(ocp.load(folder))  # the files of equal arrays may differ
        digests[str(folder.relative_to(workdir))] = digest(*(leaf.tobytes() for leaf in leaves))
    return {name: value for name, value in result.items() if name not in TIMES}, digests


def phase(workdir):
    """Return the step that a run was in: the one that is begun and not finished."""
    # A run under way moves folders while they are listed, which `os.walk` passes over.
    steps = [pathlib.Path(path) for path, _, files in os.walk(workdir) if "key.json" in files]
    begun = [
        str(path.relative_to(workdir))
        for path in steps
        if "set_aside" not in path.parts and not (path / "result.json").exists()
    ]
    return ",".join(sorted(begun)) or "start"


def free_port():
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def wait_until(condition, seconds):
    """Wait until a function returns true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition(), "nothing happened"
