"""Attempts on the machines of a Ray cluster.

Ray runs in a child process, the bridge, because of what it does to a process that uses it: it ends
the process (status 1, no exception) a minute after the head is gone, may block calls until then,
prints to standard output, and replaces the handler of SIGTERM. This process only talks to the
bridge, in lines of JSON; an end of the bridge, or its silence, is the end of the cluster.

The bridge, `ray_bridge.py`, needs a Ray node on its machine, as every Ray driver.

Checked by hand with Ray 2.60 (docs/reliability.md); Ray's own retries are off, `jobs` counts ours.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from crnas_jax.errors import UserError
from crnas_jax.search.executors.executor import Outcome
from crnas_jax.search.executors.local import (
    WorkerOptions,
    device_variables,
    find_platform,
    package_path,
)

# Seconds: for a cluster to answer at first; without a word from its head until it counts as lost.
_START, _SILENCE = 60.0, 60.0
# Seconds without new attempts on a node that seems dead: Ray is sure of it after 13 to 63.
_SHUN = 120.0
_POLL = 1.0
_BRIDGE = "crnas_jax.search.executors.ray_bridge"


class RayExecutor:
    """Runs attempts as Ray tasks, each in a new process on the node that has most room."""

    def __init__(
        self,
        address: str,
        request: Mapping[str, float],
        environment: Mapping[str, str],
        logs: pathlib.Path,
    ):
        """Connect to a cluster.

        Args:
          address: "host:port" of its head, "auto" for the one of this machine, or "local" to start
            one on this machine that ends with the executor.
          request: what an attempt takes of a node, in Ray's names: CPU, GPU, memory (bytes).
          environment: variables of attempts, set before their process starts.
          logs: folder, the same on all machines, for what attempts print; also Ray's own words.

        Raises:
          UserError: there is no such cluster, or it does not answer.
        """
        self._address, self._request, self._logs = address, dict(request), logs.resolve()
        self._nodes: dict[str, dict] = {}  # by node id: name, total, available (attempts)
        self._running: dict[str, tuple[str, float]] = {}  # by ticket: node id, start
        self._shunned: dict[str, float] = {}  # until when, by node id; others learn of a death late
        self._names: dict[str, str] = {}
        self._ended: queue.Queue[dict | None] = queue.Queue()  # None: the bridge has ended
        self._ready, self._why, self._heard = threading.Event(), "", time.monotonic()
        _probe(address)
        self._logs.mkdir(parents=True, exist_ok=True)
        settings = {"address": address, "request": self._request, "environment": dict(environment)}
        with (self._logs / "ray.txt").open("ab") as log:
            self._bridge = subprocess.Popen(
                [sys.executable, "-m", _BRIDGE, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_ray_environment(), **os.environ, "PYTHONPATH": package_path()},
                start_new_session=True,  # signals of the terminal are not for it
                text=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        if not self._ready.wait(_START) or self._why:
            self._end_bridge(0)
            raise _lost(address, self._why or "does not answer")

    @property
    def num_workers(self) -> int:
        """Attempts that all living nodes could run at once."""
        return sum(news["total"] for key, news in list(self._nodes.items()) if self._lives(key))

    def num_free(self, avoid: str = "") -> int:
        """Return how many attempts can be started now, on other workers than `avoid`."""
        return sum(self._room(node) for node in self._others(avoid))

    def has_others(self, worker: str) -> bool:
        """Return whether attempts can be made on other nodes than one, once they have room."""
        return any(
            news["total"] > 0 and self._lives(node) and self._names[node] != worker
            for node, news in list(self._nodes.items())
        )

    def start(self, ticket: str, task: dict, avoid: str = "") -> str:
        """Start an attempt on the node with most room; return the worker's name.

        Args:
          ticket: name of the attempt.
          task: {"function": "module:name", "arguments": {...}}.
          avoid: worker on which it must not run; needs `num_free(avoid) > 0`.
        """
        # Room that has gone since the caller looked comes again, or `wait` says that all is lost.
        node = max(self._others(avoid) or self._names, key=self._room)
        log = str(self._logs / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', ticket)}.txt")
        self._running[ticket] = (node, time.monotonic())
        self._send({"do": "start", "ticket": ticket, "node": node, "task": task, "log": log})
        return self._names[node]

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the attempts that have ended, as soon as one has, or after some seconds.

        Raises:
          UserError: the cluster is gone, at most a minute ago; attempts ended before are returned
            first.
        """
        end, outcomes = time.monotonic() + seconds, []
        while True:
            left = 0.0 if outcomes else min(max(end - time.monotonic(), 0.0), _POLL)
            with contextlib.suppress(queue.Empty):
                message = self._ended.get(timeout=left) if left else self._ended.get_nowait()
                if message is None:
                    self._ended.put(None)  # also for the next call
                    if outcomes:
                        return outcomes
                    raise _lost(self._address, self._why)
                outcomes += self._take(message)
                continue
            if time.monotonic() - self._heard > _SILENCE:
                self._why = f"no word from its head for {_SILENCE:.0f} s"
                self._end_bridge(0)  # the listener puts None
            if outcomes or time.monotonic() >= end:
                return outcomes

    def cancel(self, ticket: str) -> None:
        """Kill an attempt; nothing more is heard of it."""
        if self._running.pop(ticket, None):
            self._send({"do": "cancel", "ticket": ticket, "force": True})

    def close(self, patience: float = 0.0) -> None:
        """End all attempts and leave the cluster; those that save when asked have some seconds."""
        if patience:  # reaches a running attempt as SIGINT
            for ticket in self._running:
                self._send({"do": "cancel", "ticket": ticket, "force": False})
            end = time.monotonic() + patience
            with contextlib.suppress(UserError):
                while self._running and time.monotonic() < end:
                    self.wait(end - time.monotonic())
        self._end_bridge(10)

    def _lives(self, node):
        return time.monotonic() >= self._shunned.get(node, 0.0)

    def _others(self, avoid):
        return [node for node in list(self._nodes) if self._names[node] != avoid]

    def _room(self, node):
        """Return the attempts that a node has room for; late news from Ray only make it fewer."""
        news = self._nodes.get(node)
        if news is None or not self._lives(node):
            return 0
        ours = sum(place == node for place, _ in self._running.values())
        return max(min(news["total"] - ours, news["available"]), 0)

    def _take(self, message):
        if message["ticket"] not in self._running:  # cancelled
            return []
        node, started = self._running.pop(message["ticket"])
        if message["died"]:
            self._shunned[node] = time.monotonic() + _SHUN
        seconds, worker = time.monotonic() - started, self._names[node]
        return [Outcome(message["ticket"], message["kind"], message["value"], worker, seconds)]

    def _send(self, message):
        with contextlib.suppress(OSError, ValueError):  # the bridge has ended; `wait` says so
            self._bridge.stdin.write(json.dumps(message) + "\n")
            self._bridge.stdin.flush()

    def _listen(self):
        with self._bridge.stdout as lines:
            for line in lines:
                message = json.loads(line)
                if "nodes" in message:
                    self._names |= {key: node["name"] for key, node in message["nodes"].items()}
                    self._heard, self._nodes = time.monotonic(), message["nodes"]
                    self._ready.set()
                elif "lost" in message:
                    self._why = message["lost"]
                else:
                    self._ended.put(message)
        self._why = self._why or "its head is gone"
        self._nodes = {}
        self._ready.set()
        self._ended.put(None)

    def _end_bridge(self, patience):
        with contextlib.suppress(OSError):
            self._bridge.stdin.close()  # it ends with its input
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._bridge.wait(patience)
        self._bridge.kill()
        self._bridge.wait()
        self._listener.join()


def _probe(address):
    """Raise UserError where nothing listens; Ray itself tries for 14 minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError) as error:
            raise _lost(address, str(error)) from None


def _lost(address, why):
    remedy = "look after the cluster; the same command goes on"
    return UserError(f"Ray cluster {address}", "executor.address", why, remedy)


def require_ray() -> None:
    """Raise UserError where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        problem, remedy = "'ray', which is not installed", "run: pip install '.[ray]'"
        raise UserError("config", "executor.kind", problem, remedy)


def open_ray(address: str, options: WorkerOptions, logs: pathlib.Path) -> RayExecutor:
    """Return an executor on a cluster, "" for one of this machine, which ends with it.

    Args:
      address: see `RayExecutor`.
      options: what an attempt takes; "auto" stands for GPUs or cores as this machine has them.
      logs: folder that receives what attempts print.

    Raises:
      UserError: Ray is not installed, or there is no such cluster.
    """
    require_ray()
    platform = find_platform(options)
    environment = {"PYTHONPATH": package_path(), **device_variables(platform, options)}
    environment["CRNAS_THREADS"] = str(options.threads) if platform == "cpu" else ""
    request: dict[str, float] = {"CPU": options.threads, "memory": options.memory * 1e9}
    if platform == "gpu":
        request["GPU"] = options.devices / options.per_device
    elif platform == "tpu":
        request["TPU"] = options.devices
    return RayExecutor(address or "local", request, environment, logs)


def _ray_environment():
    """Return settings of Ray for the bridge; they have to be there before it is imported."""
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_NUM_REDIS_GET_RETRIES": "1",  # one try (41 s) to connect, not 20
        "RAY_gcs_server_request_timeout_seconds": "20",
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(int(_SILENCE)),
        "RAY_worker_niceness": "0",  # of a local cluster; 15 otherwise
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    token = os.environ.get("RAY_AUTH_TOKEN_PATH", os.path.expanduser("~/.ray/auth_token"))
    if "RAY_AUTH_TOKEN" in os.environ or os.path.exists(token):
        variables["RAY_AUTH_MODE"] = "token"  # does no harm to a cluster that asks for none
    return variables
