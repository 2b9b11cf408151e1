"""Searches on a Ray cluster of two nodes that are killed, stopped, and go on: `make ray`.

A search has its real controller and a table in place of trainings. Nodes are processes of this
machine with addresses of their own.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tiny_run
from helpers import ENVIRONMENT, ROOT
from ray_cluster import Cluster
from table_search import STEPS
from tiny_run import MISTAKE, STOPPED, free_port, outcome, wait_until

from crnas_jax.errors import UserError
from crnas_jax.search.executors.jobs import Jobs
from crnas_jax.search.executors.ray import RayExecutor

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Sharding info not provided"),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: make ray"
    ),
]

# Seconds: for what is quick; within which a search ends that has lost its cluster.
SOON, LOST_SOON = 120, 120
SEARCH = [
    "--config=configs/search_spinenet.py:quick",
    "--config.search.evaluations=10",
    "--config.search.in_flight=4",
    "--config.executor.workers=2",
]
# The smallest run of CR-NAS; the budget has the found network be another than the baseline.
CRNAS = [*tiny_run.TINY, "--config.budget=6", "--config.refine.seeds=1"]


class Search:
    """A command that searches.

    Attributes:
      path: its working folder.
      began: when it was started.
    """

    def __init__(self, path, environment, *flags):
        """Start it."""
        self.path, self.began = path, time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.table_search", *SEARCH, f"--workdir={path}", *flags],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @classmethod
    def on(cls, cluster, path, **environment):
        """Start it on a cluster, with some variables changed."""
        return cls(path, {**cluster.environment, **environment}, *_flags(cluster))

    def send(self, signal_number):
        """Send it a signal."""
        self._process.send_signal(signal_number)

    def wait(self, status=0, seconds=300):
        """Wait for its end with a status; return what it has said on its two outputs."""
        try:
            out, err = self._process.communicate(timeout=seconds)
        finally:
            self._process.kill()
            self._process.wait()
        assert self._process.returncode == status, out + err
        return out, err

    def attempts(self):
        """Return the folders of all attempts that have begun."""
        return sorted(path.parent for path in self.path.glob("candidates/*/attempts/*/began.json"))

    def under_way(self, count=2):
        """Wait until as many attempts run at once and have saved a step; return their folders."""

        def running():
            steps = {path: _steps(path) for path in self.attempts()}
            return [path for path, step in steps.items() if 1 <= step <= STEPS // 2]

        wait_until(lambda: len(running()) >= count, SOON)
        return running()

    def scores(self):
        """Return the journal's rows by code, without times and workers, and the proposals."""
        rows = {}
        for line in (self.path / "journal.jsonl").read_text().splitlines():
            row = json.loads(line)
            del row["seconds"], row["worker"], row["attempt"]
            assert rows.setdefault(tuple(row["code"]), row) is row, "a network was scored twice"
        return rows, (self.path / "architecture_search" / "proposals.jsonl").read_text()

    def workers(self):
        """Return the names of the workers of all scores."""
        lines = (self.path / "journal.jsonl").read_text().splitlines()
        return [json.loads(line)["worker"] for line in lines]


def _flags(cluster):
    """Return the flags of a command that uses a cluster."""
    return "--config.executor.kind=ray", f"--config.executor.address={cluster.address}"


def _steps(attempt):
    """Return how many steps an attempt has saved."""
    return len(list(attempt.glob("checkpoints/*")))


def _first_step(attempt):
    """Return the step that an attempt went on from."""
    return json.loads((attempt / "began.json").read_text())["step"]


@contextlib.contextmanager
def _cluster(*nodes, port=None, **system):
    began = time.monotonic()
    cluster = Cluster(port or free_port(), *nodes, environment=ENVIRONMENT, **system)
    print(f"\ncluster {nodes}: {time.monotonic() - began:.0f} s", flush=True)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster of two nodes, each with room for an attempt."""
    with _cluster("a", "b") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what an uninterrupted search on this machine finds."""
    search = Search(tmp_path_factory.mktemp("whole"), ENVIRONMENT)
    search.wait()
    print(f"\nlocal: {time.monotonic() - search.began:.0f} s", flush=True)
    return search.scores()


def test_both_nodes_share_a_search(cluster, whole, tmp_path):
    search = Search.on(cluster, tmp_path / "run")
    search.wait()
    print(f"\nshared: {time.monotonic() - search.began:.0f} s, {search.workers()}")
    assert search.scores() == whole
    assert set(search.workers()) == {"a", "b"}
    assert all(path.name == "1" for path in search.attempts())


def test_a_killed_attempt_is_made_again_from_what_it_saved(cluster, whole, tmp_path):
    search = Search.on(cluster, tmp_path / "run")
    attempt = search.under_way()[0]
    os.kill(json.loads((attempt / "began.json").read_text())["pid"], signal.SIGKILL)
    saved, began = _steps(attempt), time.monotonic()
    again = attempt.with_name("2")
    wait_until((again / "began.json").exists, SOON)
    print(f"\nkilled attempt: again after {time.monotonic() - began:.0f} s")
    out, _ = search.wait()
    assert "was lost (WorkerCrashedError" in out
    assert _first_step(again) >= saved > 0
    assert search.scores() == whole


def test_attempts_of_a_killed_node_are_made_elsewhere(cluster, whole, tmp_path):
    """A node that comes later gets its share."""
    search = Search.on(cluster, tmp_path / "run")
    attempts = search.under_way()
    cluster.do("kill", "b")
    cluster.do("add", "c")
    try:
        out, _ = search.wait()
    finally:
        cluster.do("kill", "c")
        cluster.do("add", "b")
    print(f"\nkilled node: {time.monotonic() - search.began:.0f} s, {search.workers()}")
    assert out.count("was lost (") == 1
    assert "the attempt on b was lost (NodeDiedError" in out
    (again,) = (path for path in search.attempts() if path.name == "2")
    assert again.with_name("1") in attempts
    assert _first_step(again) > 0
    assert search.scores() == whole
    assert {"a", "c"} <= set(search.workers())


def test_a_node_that_fails_scores_nothing(cluster, whole, tmp_path):
    """Another node attempts again what has raised on one."""
    cluster.do("add", "broken")
    try:
        search = Search.on(cluster, tmp_path / "run")
        out, _ = search.wait()
    finally:
        cluster.do("kill", "broken")
    print(f"\nbroken node: {out.count('RuntimeError')} exceptions, {search.workers()}")
    assert "RuntimeError: no device on this node" in out
    assert search.scores() == whole


def test_a_node_without_the_package_is_one_line(cluster, tmp_path, monkeypatch):
    for name in ("RAY_TMPDIR", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, cluster.environment[name])
    package = tmp_path / "other" / "crnas_jax"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('there is none')")
    monkeypatch.chdir(tmp_path)  # Ray has workers look for modules where the command was started
    environment = {"PYTHONPATH": str(package.parent)}
    executor = RayExecutor(cluster.address, {"CPU": 1}, environment, tmp_path / "logs")
    jobs = Jobs(executor)
    jobs.begin("one", {"function": "", "arguments": {}}, tmp_path / "one")
    with pytest.raises(UserError, match=r"crnas_jax: cannot be imported: .*; install the same"):
        _finish(jobs)
    jobs.close()


def _finish(jobs):
    while jobs.names:  # Ray may still offer a node that a test has killed
        jobs.wait(SOON)


def test_a_search_whose_cluster_has_stopped_goes_on_with_a_new_one(whole, tmp_path):
    port = free_port()
    with _cluster("a", "b", port=port) as cluster:
        search = Search.on(cluster, tmp_path / "run")
        wait_until(lambda: len(search.attempts()) >= 5, SOON)
        attempts = search.under_way()
    began = time.monotonic()
    _, err = search.wait(MISTAKE, LOST_SOON)
    print(f"\nstopped cluster: ended after {time.monotonic() - began:.0f} s: {err.strip()}")
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: Ray cluster {cluster.address}: ")
    scored, _ = search.scores()
    assert 0 < len(scored) < len(whole[0])
    with _cluster("a", "b", port=port) as cluster:
        search = Search.on(cluster, tmp_path / "run")
        search.wait()
    assert search.scores() == whole
    assert all(_first_step(path.with_name("2")) > 0 for path in attempts)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["asked", "killed"])
def test_a_search_that_is_stopped_goes_on(cluster, whole, tmp_path, signal_number):
    """When asked to stop its attempts save; when it is killed they end with it."""
    search = Search.on(cluster, tmp_path / "run")
    attempts = search.under_way()
    search.send(signal_number)
    began = time.monotonic()
    _, err = search.wait(STOPPED if signal_number == signal.SIGTERM else -signal_number)
    print(f"\n{signal_number.name}: ended after {time.monotonic() - began:.0f} s")
    if signal_number == signal.SIGTERM:
        assert "the attempts under way are saved; the same command goes on" in err
        logs = search.path / "logs" / "attempts"
        for path in attempts:
            assert "saving, then stopping" in (logs / f"{path.parents[1].name}.1.txt").read_text()
    pids = [json.loads((path / "began.json").read_text())["pid"] for path in attempts]
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), SOON)
    saved = {path: _steps(path) for path in attempts}
    search = Search.on(cluster, tmp_path / "run")
    search.wait()
    assert search.scores() == whole
    assert {path: _first_step(path.with_name("2")) for path in attempts} == saved


def test_a_kill_for_lack_of_memory_is_a_failure(tmp_path):
    """All memory of the machine counts as full."""
    with _cluster("a", memory_usage_threshold=0.001, memory_monitor_refresh_ms=100) as cluster:
        search = Search.on(cluster, tmp_path / "run")
        _, err = search.wait(MISTAKE)
    assert "5 of 5 candidates failed, last: memory" in err
    rows, _ = search.scores()
    assert {row["failure"] for row in rows.values()} == {"memory"}
    assert all(path.name == "1" for path in search.attempts())


def test_a_cluster_of_this_machine_is_started_and_ended(cluster, whole, tmp_path):
    environment = {**ENVIRONMENT, "RAY_TMPDIR": cluster.environment["RAY_TMPDIR"]}
    search = Search(tmp_path / "run", environment, "--config.executor.kind=ray")
    search.wait()
    assert search.scores() == whole


def test_a_wrong_token_is_one_line(cluster, tmp_path):
    search = Search.on(cluster, tmp_path / "run", RAY_AUTH_TOKEN="1" * 64)
    _, err = search.wait(MISTAKE)
    (line,) = err.strip().splitlines()
    assert "it asks for a token" in line


def _run(script, workdir, *flags, environment=ENVIRONMENT):
    """Run a script of CR-NAS to its end."""
    began = time.monotonic()
    flags = [*CRNAS, tiny_run.baseline(workdir, (1, 1, 1, 2)), f"--workdir={workdir}", *flags]
    command = [sys.executable, f"scripts/{script}.py", *flags]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    print(f"\n{script} {flags[-1]}: {time.monotonic() - began:.0f} s", flush=True)


def test_trainings_of_crnas_are_those_of_this_machine(cluster, tmp_path):
    for script in ("train_supernet", "search_stage", "search_operations"):
        _run(script, tmp_path / "local")
    shutil.copytree(tmp_path / "local", tmp_path / "ray")
    _run("run_crnas", tmp_path / "local", "--config.executor.kind=local")
    _run("run_crnas", tmp_path / "ray", *_flags(cluster), environment=cluster.environment)
    assert outcome(tmp_path / "ray") == outcome(tmp_path / "local")
    assert _detections(tmp_path / "ray") == _detections(tmp_path / "local")


def _detections(path):
    """Return the text of all files of detections."""
    files = {file.relative_to(path): file.read_text() for file in path.rglob("*detections*.json")}
    assert files
    return files
