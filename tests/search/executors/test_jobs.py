"""Jobs on real processes: failures, lost attempts, stragglers; no training is behind them."""

import errno
import json
import os
import pathlib
import shutil
import signal
import sys
import time
import types

import pytest

from crnas_jax.errors import UserError
from crnas_jax.runtime import interruption
from crnas_jax.search.executors import executor as ends
from crnas_jax.search.executors import ray_bridge, worker
from crnas_jax.search.executors.executor import Executor, Outcome
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.executors.local import LocalExecutor, Slot, WorkerOptions, make_slots
from crnas_jax.search.executors.ray import open_ray


class Told:
    """An executor whose attempts end as the test says."""

    num_workers = 2

    def __init__(self):
        self.running, self.started, self.cancelled, self.ended = {}, [], [], []

    def num_free(self, avoid=""):
        places = {"a", "b"} - set(self.running.values()) - {avoid}
        return len(places)

    def has_others(self, worker):
        return True

    def start(self, ticket, task, avoid=""):
        worker = min({"a", "b"} - set(self.running.values()) - {avoid})
        self.running[ticket] = worker
        self.started.append((ticket, task["arguments"]))
        return worker

    def end(self, ticket, kind, seconds=1.0, **value):
        self.ended.append(Outcome(ticket, kind, value, self.running.pop(ticket), seconds))

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended

    def cancel(self, ticket):
        self.cancelled.append(ticket)
        self.running.pop(ticket, None)

    def close(self, patience=0.0):
        self.running.clear()


def _jobs(tmp_path, *names):
    executor, said = Told(), []
    assert isinstance(executor, Executor)
    jobs = Jobs(executor, said.append)
    for name in names:
        jobs.begin(name, {"function": "f", "arguments": {"x": 1}}, tmp_path / name)
    return jobs, executor, said


def _checkpoint(tmp_path, name, attempt, step):
    (tmp_path / name / "attempts" / str(attempt) / "checkpoints" / str(step)).mkdir(parents=True)


def test_attempts_go_on_from_what_was_begun_without_an_executor(tmp_path):
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)
    jobs, executor, _ = _jobs(tmp_path, "one")
    executor.end("one.1", ends.LOST)
    jobs.wait()
    earlier = [arguments["earlier"] for _, arguments in executor.started]
    own, first = str(tmp_path / "one"), str(tmp_path / "one" / "attempts" / "1")
    assert earlier == [[own], [first, own]]


def test_an_exception_counts_after_two_attempts_without_a_newer_checkpoint(tmp_path):
    jobs, executor, said = _jobs(tmp_path, "one")
    for attempt, step in enumerate((5, 9), 1):
        _checkpoint(tmp_path, "one", attempt, step)
        executor.end(f"one.{attempt}", ends.ERROR, text="broken")
        assert jobs.wait(0) == []
    executor.end("one.3", ends.ERROR, text="broken")
    (end,) = jobs.wait(0)
    assert end.failure == "broken"
    assert len(said) == 3
    folders = [arguments["folder"] for _, arguments in executor.started]
    assert len(set(folders)) == len(folders)
    last = executor.started[-1][1]
    assert last["x"] == 1
    assert last["earlier"] == folders[-2::-1]


def test_after_an_exception_another_worker_is_taken_where_there_is_one(tmp_path, monkeypatch):
    jobs, executor, _ = _jobs(tmp_path, "one", "two", "three")
    assert executor.running == {"one.1": "a", "two.1": "b"}
    executor.end("one.1", ends.ERROR, text="broken")
    jobs.wait(0)
    assert executor.running == {"two.1": "b", "three.1": "a"}
    executor.end("two.1", ends.RESULT, AP=0.1)
    jobs.wait(0)
    assert executor.running == {"three.1": "a", "one.2": "b"}
    monkeypatch.setattr(Told, "has_others", lambda *_: False)
    executor.end("one.2", ends.ERROR, text="broken")
    (end,) = jobs.wait(0)
    assert end.failure == "broken"
    executor.end("three.1", ends.ERROR, text="broken")
    jobs.wait(0)
    assert executor.running == {"three.2": "a"}


def test_a_lost_attempt_is_no_failure_but_five_without_progress_stop(tmp_path):
    jobs, executor, _ = _jobs(tmp_path, "one")
    for attempt in range(1, 5):
        executor.end(f"one.{attempt}", ends.LOST, text="killed")
        assert jobs.wait(0) == []
    _checkpoint(tmp_path, "one", 5, 3)
    for attempt in range(5, 9):
        executor.end(f"one.{attempt}", ends.LOST, text="killed")
        assert jobs.wait(0) == []
    executor.end("one.9", ends.LOST, text="killed")
    with pytest.raises(UserError, match="lost 5 times"):
        jobs.wait(0)


def test_memory_and_reported_failures_count_at_once(tmp_path):
    jobs, executor, _ = _jobs(tmp_path, "one", "two")
    executor.end("one.1", ends.MEMORY)
    executor.end("two.1", ends.RESULT, failure="not finite")
    assert {end.name: end.failure for end in jobs.wait(0)} == {"one": "memory", "two": "not finite"}
    assert not jobs.names


def test_a_mistake_stops_and_scores_nothing(tmp_path):
    jobs, executor, _ = _jobs(tmp_path, "one")
    fields = {"where": "disk", "field": "file", "problem": "full", "remedy": "make room"}
    executor.end("one.1", ends.MISTAKE, **fields)
    with pytest.raises(UserError, match="full"):
        jobs.wait(0)


def _clock(monkeypatch):
    """Return the time, in a list, that everything reads from now on."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def _one_left_after_three(tmp_path):
    """Return jobs of which three have taken ten seconds each and the fourth still runs."""
    jobs, executor, said = _jobs(tmp_path, *"abcd")
    for name in "abc":
        executor.end(f"{name}.1", ends.RESULT, seconds=10.0, AP=0.1)
        jobs.wait(0)
    assert list(executor.running) == ["d.1"]
    return jobs, executor, said


def test_a_straggler_is_attempted_elsewhere_and_the_first_result_counts(tmp_path, monkeypatch):
    now = _clock(monkeypatch)
    jobs, executor, said = _one_left_after_three(tmp_path)
    now[0] += 31
    jobs.wait(0)
    assert set(executor.running) == {"d.1", "d.2"}
    assert len(set(executor.running.values())) == 2
    assert "second attempt" in said[-1]
    executor.end("d.2", ends.RESULT, AP=0.7)
    (end,) = jobs.wait(0)
    assert end.value == {"AP": 0.7}
    assert executor.cancelled == ["d.1"]
    late = Outcome("d.1", ends.RESULT, {"AP": 0.9}, "a", 99.0)
    executor.ended.append(late)
    assert jobs.wait(0) == []


def test_errors_of_a_second_attempt_are_not_the_end_of_the_first(tmp_path, monkeypatch):
    now = _clock(monkeypatch)
    jobs, executor, _ = _one_left_after_three(tmp_path)
    now[0] += 31
    jobs.wait(0)
    for attempt in ("d.2", "d.3"):
        if attempt in executor.running:
            executor.end(attempt, ends.ERROR, text="a broken driver")
            assert jobs.wait(0) == []
    assert list(executor.running) == ["d.1"]  # no third attempt while it may be well
    executor.end("d.1", ends.RESULT, AP=0.7)
    assert [end.value for end in jobs.wait(0)] == [{"AP": 0.7}]


def test_slow_is_what_takes_long_for_its_kind(tmp_path, monkeypatch):
    now = _clock(monkeypatch)
    jobs, executor, said = _jobs(tmp_path)
    for number in range(6):  # short ones, and failures
        jobs.begin(f"{number}", {"function": "f", "arguments": {}}, tmp_path / f"{number}", "short")
        failure = {"failure": "not finite"} if number % 2 else {"AP": 0.1}
        executor.end(f"{number}.1", ends.RESULT, seconds=0.01 if number % 2 else 10.0, **failure)
        jobs.wait(0)
    jobs.begin("long", {"function": "f", "arguments": {}}, tmp_path / "long", "long")
    now[0] += 100
    jobs.wait(0)
    assert list(executor.running) == ["long.1"]
    jobs.begin("short", {"function": "f", "arguments": {}}, tmp_path / "short", "short")
    executor.end("long.1", ends.RESULT, AP=0.1)
    now[0] += 29
    jobs.wait(0)
    assert list(executor.running) == ["short.1"]
    now[0] += 2
    jobs.wait(0)
    assert set(executor.running) == {"short.1", "short.2"}
    assert len(said) == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "file"), ends.MISTAKE),
        (OSError(errno.ESTALE, "Stale file handle"), ends.LOST),
        (shutil.Error([("a", "b", "no")]), ends.LOST),
        (ValueError("no such layer"), ends.ERROR),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GB"), ends.MEMORY),
    ],
)
def test_errors_of_the_machine_are_none_of_the_network(error, kind, monkeypatch):
    module = types.ModuleType("module")
    module.run = lambda: (_ for _ in ()).throw(error)
    monkeypatch.setitem(sys.modules, "module", module)
    assert worker.attempt({"function": "module:run", "arguments": {}})[0] == kind


def test_a_stop_saves_and_leaves_the_jobs_for_later(tmp_path, monkeypatch):
    jobs, executor, _ = _jobs(tmp_path, "one")
    monkeypatch.setattr(interruption, "requested", lambda: True)
    with pytest.raises(interruption.Stopped):
        jobs.wait(0)
    assert not executor.running


def answer(kind, folder, earlier):
    """What the processes below do."""
    if kind == "raise":
        raise ValueError("no")
    if kind == "mistake":
        raise UserError("here", "field", "problem", "remedy")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "sleep":
        time.sleep(60)
    return {"cores": sorted(os.sched_getaffinity(0)), "device": os.environ["MY_DEVICE"]}


def test_local_attempts_run_in_processes_with_their_own_devices(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    slots = [Slot("first", {"MY_DEVICE": "7"}, (cores[-1],)), Slot("second", {"MY_DEVICE": "8"})]
    root = str(pathlib.Path(__file__).parents[3])
    for slot in slots:
        slot.environment["JAX_PLATFORMS"] = "cpu"
    executor = LocalExecutor(slots, tmp_path / "logs")
    assert isinstance(executor, Executor)
    function = "tests.search.executors.test_jobs:answer"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    kinds = {"raise": ends.ERROR, "mistake": ends.MISTAKE, "die": ends.LOST, "work": ends.RESULT}
    waiting, outcomes = list(kinds), {}
    while len(outcomes) < len(kinds):
        while waiting and executor.num_free():
            kind = waiting.pop(0)
            arguments = {"kind": kind, "folder": "", "earlier": []}
            executor.start(kind, {"function": function, "arguments": arguments})
        outcomes |= {outcome.ticket: outcome for outcome in executor.wait(60)}
    assert {name: outcome.kind for name, outcome in outcomes.items()} == kinds
    assert outcomes["work"].value["device"] in "78"
    assert outcomes["mistake"].value["problem"] == "problem"
    assert "ValueError: no" in outcomes["raise"].value["text"]
    assert "ValueError: no" in (tmp_path / "logs" / "raise.txt").read_text()
    arguments = {"kind": "sleep", "folder": "", "earlier": []}
    executor.start("sleep", {"function": function, "arguments": arguments})
    executor.close()
    assert executor.num_free() == 2


def test_workers_share_the_devices_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6")
    slots = make_slots(WorkerOptions("gpu"))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "5", "6"]
    slots = make_slots(WorkerOptions("gpu", devices=2, per_device=2))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2,5", "2,5"]
    slots = make_slots(WorkerOptions("gpu", workers=4, per_device=2))
    assert [slot.name for slot in slots] == ["gpu 2.0", "gpu 5.0", "gpu 6.0", "gpu 2.1"]
    assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in slots} == {"0.450"}
    executor = LocalExecutor(make_slots(WorkerOptions("gpu", workers=4, per_device=2)), tmp_path)
    assert executor.num_free("gpu 2.0") == 2  # elsewhere is on another device
    executor.close()
    with pytest.raises(UserError, match="has 3"):
        make_slots(WorkerOptions("gpu", devices=4))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
    assert [slot.cores for slot in make_slots(WorkerOptions("cpu", threads=2))] == [(0, 1), (2, 3)]
    with pytest.raises(UserError, match="threads"):
        WorkerOptions("cpu", threads=0)
    for chips, bounds in (("0,1", "1,2,1"), ("0,1,2,3", "2,2,1")):
        monkeypatch.setenv("TPU_VISIBLE_CHIPS", chips)
        (slot,) = make_slots(WorkerOptions("tpu", devices=len(chips.split(","))))
        assert slot.environment["TPU_VISIBLE_CHIPS"] == chips
        assert slot.environment["TPU_CHIPS_PER_PROCESS_BOUNDS"] == bounds


def test_a_machine_of_a_cluster_that_cannot_write_the_folder_is_a_mistake(tmp_path):
    (tmp_path / "file").touch()
    kind, value = ray_bridge.attempt({}, str(tmp_path / "file" / "log.txt"), str(tmp_path))
    assert kind == ends.MISTAKE
    assert "--workdir" in str(UserError(**json.loads(value)))


def test_an_unreachable_cluster_is_one_line(tmp_path, monkeypatch):
    options = WorkerOptions("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        open_ray("", options, tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match="cluster"):
        open_ray("127.0.0.1:1", options, tmp_path)
