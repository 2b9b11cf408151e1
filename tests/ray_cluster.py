"""A small Ray cluster on this machine: a process of its own, because Ray ends those that use it.

python tests/ray_cluster.py PORT NODE... starts a head without room for attempts and nodes with room
for one each, prints the head's address, and does what it reads, a line each: "add NODE", "kill
NODE". It ends with its input. Attempts find the name of their node in the variable NODE.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

# Bytes; nothing large goes through Ray.
_OBJECT_STORE = 80 * 2**20
_HEAD, _FIRST = 2, 3  # last parts of addresses 127.0.0.x


class Cluster:
    """Starts, changes and stops a cluster.

    Attributes:
      address: host:port of its head.
      environment: variables of its nodes, and of commands that use it.
    """

    def __init__(self, port, *nodes, environment, **system):
        """Start a cluster.

        Args:
          port: port of its head.
          *nodes: names of nodes.
          environment: variables.
          **system: settings of Ray.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="ray-")  # paths of sockets are short
        self.environment = {
            **environment,
            "RAY_TMPDIR": self._folder.name,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_TOKEN": "0" * 64,
            "RAY_worker_niceness": "0",
        }
        log = (pathlib.Path(self._folder.name) / "log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), json.dumps(system), *nodes],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**self.environment, "RAY_AUTH_MODE": "token"},
            start_new_session=True,
            text=True,
        )
        log.close()
        self.address = self._answer()

    def do(self, what, node):
        """Add or kill a node; return when it is done."""
        self._process.stdin.write(f"{what} {node}\n")
        self._process.stdin.flush()
        self._answer()

    def stop(self):
        """Stop the cluster, all of its processes at once."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, (pathlib.Path(self._folder.name) / "log").read_text()[-2000:]
        return line.strip()


def main(port, system, *names):
    """Start a cluster, and do what standard input says."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what Ray prints
    from ray import cluster_utils

    head = {
        "num_cpus": 0,
        "gcs_server_port": int(port),
        "node_ip_address": f"127.0.0.{_HEAD}",
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE,
        "_system_config": json.loads(system) or None,
    }
    cluster, nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=head), {}

    def add(name):
        nodes[name] = cluster.add_node(
            num_cpus=1,
            node_name=name,
            env_vars={"NODE": name},
            node_ip_address=f"127.0.0.{_FIRST + len(nodes)}",
            object_store_memory=_OBJECT_STORE,
        )

    for name in names:
        add(name)
    print(cluster.address, file=out)
    for line in sys.stdin:
        what, name = line.split()
        if what == "add":
            add(name)
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print("done", file=out)
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
