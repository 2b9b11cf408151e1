"""Several hosts as one: `jax.distributed`, how they agree, and programs that they run together.

Text goes from host to host through the key-value store of JAX's coordinator, arrays through
programs. Alone, nothing here does anything.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from crnas_jax.parallel.cluster import Cluster
from crnas_jax.parallel.supervisor import connected, show, waiting
from crnas_jax.runtime import team

# Waits end with the supervisor's limit, or when a host is lost; these would only come before.
_FOREVER = 10 * 24 * 3600 * 1000
_POLL = 5_000  # milliseconds
# Messages between two barriers, after which the coordinator forgets them.
_EPOCH = 256
_PREFIX, _FAILED, _GONE = "crnas_jax", "crnas_jax/failed", "crnas_jax/gone"
# Seconds in which hosts leave together after a failure.
_LEAVING = 5.0
# Seconds for which a host that has compiled waits for others, whatever `hang_seconds` is: its
# programs may have been in a cache that others do not have.
_COMPILATION = 3600.0
# Seconds after which a process says that it waits for others to start.
_PATIENCE = 10.0
# Seconds in which all hosts have to be there: launchers start them minutes apart.
_STARTING = 300
# Stand in errors of JAX that another host's end may have caused.
_NETWORK_WORDS = ("gloo", "peer", "socket", "nccl", "coordination", "unavailable", "cancelled")


class Hosts:
    """The hosts of a command; implements `runtime.team.Team`.

    Attributes:
      index: number of this host.
      count: number of hosts.
    """

    def __init__(self, cluster: Cluster, heartbeat_seconds: int, saves_on_stop: bool):
        """Connect; see `connect`."""
        self.index, self.count = cluster.index, cluster.count
        self._heartbeat_seconds = heartbeat_seconds
        # Errors of other hosts come while Orbax's output is silenced (`checkpoint`).
        self._screen = sys.stderr
        # Private in JAX, as what `wait_at_barrier` belongs to has no public name.
        from jax._src.distributed import global_state

        patience = threading.Timer(_PATIENCE, self._say_what_is_awaited, [cluster])
        patience.daemon = True
        patience.start()
        # JAX passes SIGTERM on to all hosts; a handler of Python's would keep it from that.
        jax.config.update("jax_enable_preemption_service", saves_on_stop)
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.count,
            cluster.index,
            list(cluster.local_devices) if cluster.local_devices else None,
            cluster_detection_method="deactivate",
            initialization_timeout=max(heartbeat_seconds, _STARTING),
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=heartbeat_seconds,
        )
        patience.cancel()
        connected()
        self._client = global_state.client
        self._epoch, self._messages, self._barriers, self._questions = 0, 0, 0, 0
        self._is_stopping = False
        self._leaving = threading.Lock()
        threading.Thread(target=self._leave_with_others, daemon=True).start()

    def _say_what_is_awaited(self, cluster):
        text = f"host {self.index}: waiting for {self.count} processes at {cluster.coordinator}"
        show(f"{text}, at most {_STARTING} s")

    def broadcast(self, text: str | None) -> str:
        """Return the primary's text; every host calls it, the others with None."""
        key = self._next_key()
        if self.index == 0:
            self._client.key_value_set(key, text)
            return text
        with waiting("a word from host 0"):
            return self._client.blocking_key_value_get(key, _FOREVER)

    def gather(self, text: str) -> list[str]:
        """Return the texts of all hosts by index; every host calls it."""
        key = self._next_key()
        self._client.key_value_set(f"{key}/{self.index}", text)
        with waiting("a word from the other hosts"):
            return [
                self._client.blocking_key_value_get(f"{key}/{index}", _FOREVER)
                for index in range(self.count)
            ]

    def stop_requested(self) -> bool:
        """Return whether a host got SIGTERM; the same on all that ask equally often."""
        self._questions += 1
        if multihost_utils.reached_preemption_sync_point(self._questions):
            if not self._is_stopping:
                print("asked to stop: saving, then stopping", flush=True)
            self._is_stopping = True
        return self._is_stopping

    def barrier(self) -> None:
        """Wait for all hosts, however long they take."""
        self._barriers += 1
        self._client.wait_at_barrier(f"{_PREFIX}/{self._barriers}", _FOREVER)

    def _next_key(self):
        self._messages += 1
        if self._messages % _EPOCH == 0:
            with waiting("the other hosts"):
                self.barrier()
            if self.index == 0:
                self._client.key_value_delete(f"{_PREFIX}/{self._epoch}/")
            self._epoch += 1
        return f"{_PREFIX}/{self._epoch}/{self._messages}"

    def fail(self, status: int, line: str) -> None:
        """End this process and all others with a status; the primary prints the line.

        Args:
          status: status of all processes.
          line: the line about this host's failure; "" where every host knows of it already.
        """
        self._leaving.acquire()  # for good
        if line:
            self._tell(line)
            with contextlib.suppress(Exception):  # another host was first
                self._client.key_value_set(_FAILED, json.dumps([status, line]))
        self._leave(status)

    def leave(self, status: int) -> None:
        """End this process in order, when all have come to their end."""
        sys.stdout.flush()
        sys.stderr.flush()
        with waiting("the end of the other hosts"):
            self.barrier()  # that of JAX waits for no more than a heartbeat
            jax.distributed.shutdown()
        os._exit(status)

    def await_verdict(self, error: BaseException) -> None:
        """Wait for the end of this process where another host's end may have caused an error."""
        if may_come_from_others(error):
            # A host that fails says so; one that is lost takes this process with it.
            time.sleep(self._heartbeat_seconds + _LEAVING)

    def _tell(self, line):
        print(line, file=self._screen, flush=True)

    def _leave_with_others(self):
        while True:
            try:
                content = self._client.blocking_key_value_get(_FAILED, _POLL)
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE" not in str(error):
                    return  # this host is ending too
        status, line = json.loads(content)
        self._leaving.acquire()
        self._tell(line)
        self._leave(status)

    def _leave(self, status):
        """End at once; the primary last, because the coordinator is in it."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{_GONE}/{self.index}", "")
            end = time.monotonic() + _LEAVING
            while self.index == 0 and time.monotonic() < end:
                if len(self._client.key_value_dir_get(_GONE)) == self.count:
                    break
                time.sleep(0.05)
        os._exit(status)


def connect(cluster: Cluster, heartbeat_seconds: int, saves_on_stop: bool = True) -> Hosts:
    """Join the hosts of a command; before anything else of JAX is used.

    Args:
      cluster: the hosts, and which this is.
      heartbeat_seconds: silence of a host after which it counts as lost.
      saves_on_stop: whether SIGTERM only asks all hosts to stop (`runtime.interruption`); otherwise
        it ends the process that gets it.
    """
    hosts = Hosts(cluster, heartbeat_seconds, saves_on_stop)
    team.join(hosts)
    return hosts


def may_come_from_others(error: BaseException) -> bool:
    """Return whether another host's end may have caused an error."""
    if not team.is_joint():
        return False
    # Orbax makes a TimeoutError, which Python has among those of files, of every failed wait.
    if isinstance(error, TimeoutError) and error.errno is None:
        return True
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    return is_of_jax and any(word in str(error).lower() for word in _NETWORK_WORDS)


def jit(function: Callable, **options) -> "Program":
    """Jit a function of arrays that may belong to several hosts; see `jax.jit`."""
    return Program(jax.jit(function, **options))


class Program:
    """A jitted function that all hosts run together.

    Before its first run with such arguments all hosts wait until each has compiled it: where one
    compiles for longer than another waits in a collective (30 s on CPUs), the latter would fail.

    Attributes:
      jitted: the function as `jax.jit` returned it; its attributes are this object's too.
    """

    def __init__(self, jitted: Callable):
        """Wrap a jitted function."""
        self.jitted, self._compiled = jitted, set()

    def __getattr__(self, name):
        return getattr(self.jitted, name)

    def __call__(self, *args, **kwargs):
        """Run the function; see the class."""
        if not team.is_joint():
            return self.jitted(*args, **kwargs)
        key = _signature((args, kwargs))
        if key not in self._compiled:
            self.jitted.lower(*args, **kwargs).compile()
            with waiting("compilation on the other hosts", at_least=_COMPILATION):
                team.current().barrier()
            self._compiled.add(key)
        with waiting("a step"):
            return self.jitted(*args, **kwargs)


def _signature(tree):
    leaves, structure = jax.tree.flatten(tree)
    shapes = tuple(
        (leaf.shape, str(leaf.dtype), getattr(leaf, "sharding", None))
        if hasattr(leaf, "dtype")
        else (leaf if isinstance(leaf, str | bool) else type(leaf))
        for leaf in leaves
    )
    return structure, shapes


def put(tree: PyTree, sharding: Sharding | PyTree) -> PyTree:
    """Put arrays on the devices of all hosts, each of which has all values.

    `jax.device_put` would first compare the values of all hosts.

    Args:
      tree: arrays.
      sharding: where they go: one for all leaves, or a tree with one for each.
    """
    if not team.is_joint():
        return jax.device_put(tree, sharding)

    tree = fetch(tree)

    def put_leaf(leaf, leaf_sharding):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, leaf_sharding, lambda index: leaf[index])

    if isinstance(sharding, Sharding):
        return jax.tree.map(lambda leaf: put_leaf(leaf, sharding), tree)
    return jax.tree.map(put_leaf, tree, sharding)


def fetch(tree: PyTree) -> PyTree:
    """Return arrays as NumPy arrays, on every host all of their values."""
    if team.is_joint():
        tree = _replicated(tree)
    with waiting("the result of a step"):
        return jax.device_get(tree)


def _replicated(tree):
    """Return the tree with every array that is split between hosts on all devices."""
    leaves, structure = jax.tree.flatten(tree)
    split = [
        index
        for index, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and not (leaf.is_fully_replicated or leaf.is_fully_addressable)
    ]
    if split:
        mesh = leaves[split[0]].sharding.mesh
        whole = _gather(NamedSharding(mesh, PartitionSpec()))([leaves[index] for index in split])
        for index, leaf in zip(split, whole, strict=True):
            leaves[index] = leaf
    return jax.tree.unflatten(structure, leaves)


@functools.cache
def _gather(sharding):
    """Return the program that copies arrays to all devices of a mesh."""
    return jit(lambda tree: tree, out_shardings=sharding)
