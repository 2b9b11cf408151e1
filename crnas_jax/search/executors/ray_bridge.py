"""The process between `RayExecutor` and Ray: `python -m ...ray_bridge SETTINGS`.

Standard input says what to do, standard output what has happened, a line of JSON each; it ends with
its input, or when the executor kills it. Standard error is a log.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Mapping
from typing import Any, NoReturn

from crnas_jax.search.executors.executor import ERROR, LOST, MEMORY, MISTAKE

# Seconds between two looks at the nodes; until Ray's news of one tell that an attempt has ended.
_POLL, _LAG = 1.0, 0.2
_NO_NODE = "the Ray node on this machine has ended"
_OBJECT_STORE = 80 * 2**20  # bytes; nothing large goes through Ray


def attempt(task: dict, log: str, place: str) -> tuple[str, str]:
    """Run a task in a process of its own; return the kind of its end and the value as JSON.

    Its code comes from the bridge, so that a machine without this package can say what it lacks.

    Args:
      task: the task.
      log: file for what it prints. Where the working folder is not shared it is the machine's own.
      place: the command's current folder, from which relative paths of data lead.
    """
    try:
        os.makedirs(os.path.dirname(log), exist_ok=True)
    except OSError as error:
        return _mistake("--workdir", f"{error}", "name a folder that every machine can write")
    with contextlib.suppress(OSError):
        os.chdir(place)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threads = os.environ.get("CRNAS_THREADS")
    if threads:  # before JAX starts as many threads as there are cores
        os.sched_setaffinity(0, _claim_cores(int(threads)))
    try:
        from crnas_jax.parallel.process import prepare, trim_cache
        from crnas_jax.search.executors import worker
    except Exception as error:
        traceback.print_exc()
        problem = f"cannot be imported: {type(error).__name__}: {error}"
        return _mistake("crnas_jax", problem, "install the same version on all machines")
    prepare(saves_on_stop=True)
    kind, value = worker.attempt(task)
    trim_cache()
    return kind, json.dumps(value)


def _mistake(field, problem, remedy):
    where = f"worker on {socket.gethostname()}"
    return MISTAKE, json.dumps(
        {"where": where, "field": field, "problem": problem, "remedy": remedy}
    )


def _claim_cores(number):
    """Return cores that no other attempt on this machine has, where there are as many.

    They are this process's until it ends, by locks.
    """
    cores, claimed = sorted(os.sched_getaffinity(0)), []
    first = zlib.crc32(socket.gethostname().encode())  # containers do not see each other's locks
    cores = [cores[(first + i) % len(cores)] for i in range(len(cores))]
    for core in cores:
        name = f"{tempfile.gettempdir()}/crnas_jax-{os.getuid()}-core-{core}"
        file = os.open(name, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            continue
        claimed.append(core)
        if len(claimed) == number:
            return claimed
    return (claimed + [core for core in cores if core not in claimed])[:number]


class Bridge:
    """The connection to a cluster, and the attempts on it."""

    def __init__(self, address: str, request: Mapping[str, float], environment: dict[str, str]):
        """Connect; see `RayExecutor`."""
        self._out, self._lock = os.fdopen(os.dup(1), "w", buffering=1), threading.Lock()
        os.dup2(2, 1)  # what Ray prints goes to the log
        # Ray takes seconds to import, and no other process than this one should.
        import ray
        import ray.exceptions
        from ray._private.state import available_resources_per_node

        self._ray, self._idle, self._refs = ray, available_resources_per_node, {}
        self._changed = threading.Event()
        self._request = {name: amount for name, amount in request.items() if amount}
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == "local":
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        try:
            ray.init(address=address, **options)
        except Exception as error:
            self._give_up(_reason(error, address))
        # `max_calls`: a new process for each; only the decorator takes it.
        self._function = ray.remote(max_calls=1, max_retries=0)(attempt)
        named = ("CPU", "GPU", "memory")
        self._options = {
            "num_cpus": self._request.get("CPU", 0),
            "num_gpus": self._request.get("GPU", 0),
            "memory": self._request.get("memory"),
            "resources": {k: v for k, v in self._request.items() if k not in named},
            "runtime_env": {"env_vars": environment},
        }

    def run(self) -> None:
        """Do what standard input says until it ends."""
        threading.Thread(target=self._tell_nodes, daemon=True).start()
        for line in sys.stdin:
            message = json.loads(line)
            if message["do"] == "start":
                self._start(message["ticket"], message["node"], message["task"], message["log"])
            # Another thread removes those that have ended.
            elif (ref := self._refs.get(message["ticket"])) is not None:
                self._ray.cancel(ref, force=message["force"])
        self._ray.shutdown()  # Ray kills the attempts of a driver that is gone

    def _start(self, ticket, node, task, log):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node, soft=False)
        function = self._function.options(**self._options, scheduling_strategy=place)
        self._refs[ticket] = function.remote(task, log, os.getcwd())
        self._refs[ticket].future().add_done_callback(lambda end: self._tell_end(ticket, end))

    def _tell_end(self, ticket, future):
        self._refs.pop(ticket, None)
        self._changed.set()
        try:
            kind, value = future.result()
            self._say({"ticket": ticket, "kind": kind, "value": json.loads(value), "died": False})
        except BaseException as error:
            failures = self._ray.exceptions
            if isinstance(error, failures.LocalRayletDiedError):
                self._give_up(_NO_NODE)
            kind = LOST
            if isinstance(error, failures.OutOfMemoryError):
                kind = MEMORY
            elif isinstance(error, failures.TaskCancelledError):  # before RayTaskError: it is both
                kind = LOST
            elif isinstance(error, failures.RayTaskError | failures.RuntimeEnvSetupError):
                kind = ERROR
            died = isinstance(error, failures.NodeDiedError | failures.TaskUnschedulableError)
            text = str(error) if kind != LOST else str(error).split(". ")[0]
            value = {"text": f"{type(error).__name__}: {text}"[:1000]}
            self._say({"ticket": ticket, "kind": kind, "value": value, "died": died})

    def _tell_nodes(self):
        """Say what the nodes have, again and again; the executor counts on hearing it."""
        here = self._ray.get_runtime_context().get_node_id()
        while True:
            try:
                idle, nodes = self._idle(), {}
                for node in self._ray.nodes():
                    if node["Alive"]:
                        key, given = node["NodeID"], node["NodeName"]
                        has_name = given != node["NodeManagerAddress"]
                        nodes[key] = {
                            "name": given if has_name else node["NodeManagerHostname"],
                            "total": self._fits(node["Resources"]),
                            "available": self._fits(idle.get(key, {})),
                        }
                if here not in nodes:
                    self._give_up(_NO_NODE)
                self._say({"nodes": nodes})
            except Exception:  # silence tells it
                traceback.print_exc()
            if self._changed.wait(_POLL):
                self._changed.clear()
                time.sleep(_LAG)

    def _fits(self, resources):
        """Return how many attempts fit into a node's resources."""
        return min(int(resources.get(k, 0) / v + 1e-6) for k, v in self._request.items())

    def _say(self, message):
        with self._lock, contextlib.suppress(OSError):
            self._out.write(json.dumps(message) + "\n")

    def _give_up(self, why: str) -> NoReturn:
        self._say({"lost": " ".join(why.split())[:400]})
        os._exit(1)


def _reason(error, address):
    """Return why Ray does not connect, in one line."""
    cause = str(error.__cause__ or "")
    if "InvalidAuthToken" in cause:
        return "it asks for a token: copy ~/.ray/auth_token of its head, set RAY_AUTH_MODE=token"
    if "No node info found" in cause:
        return f"this machine has no Ray node: run 'ray start --address={address}' on it"
    return f"{error}"


if __name__ == "__main__":
    Bridge(**json.loads(sys.argv[1])).run()
