"""Which process of which command this is: from flags, or from what started it.

One process is one host with all of its devices, or one of several on a host. Nothing is
asked of the network here but a TPU VM's metadata.
"""

import dataclasses
import os
import re
from collections.abc import Mapping

from crnas_jax.errors import UserError

_COORDINATOR = "JAX_COORDINATOR_ADDRESS"
# JAX's own port for its coordinator on TPUs; SLURM and Open MPI get one for each job.
_PORT = 8476
_FIRST_PORT, _NUM_PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a command, before they know each other.

    Attributes:
      coordinator: host:port of the primary, which the others reach it by.
      count: number of processes.
      index: number of this process; the primary is 0.
      local_devices: numbers of this process's GPUs where several share a host; None for all.
      source: what said so, for messages.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None
    source: str = "flags"

    def __post_init__(self):
        if self.count < 1 or not 0 <= self.index < self.count:
            problem = f"process {self.index} of {self.count}"
            raise UserError(self.source, "--process_id", problem, "count processes from 0")
        if not re.search(r":\d+$", self.coordinator):
            remedy = "give host:port of the first process, a port that is free there"
            raise UserError(self.source, "--coordinator", f"{self.coordinator!r}", remedy)


def find_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Return the processes that this one belongs to; None where it is alone.

    Args:
      coordinator: what a flag says, as `num_processes` and `process_id`; the environment says the
        rest.
      num_processes: see `coordinator`.
      process_id: see `coordinator`.
      environment: environment variables: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
        JAX_PROCESS_ID or Kubernetes' JOB_COMPLETION_INDEX; or those of SLURM, Open MPI, or TPU.

    Raises:
      UserError: something is missing or out of range.
    """
    if coordinator:
        environment = {**environment, _COORDINATOR: coordinator}
    given = {
        "--coordinator": environment.get(_COORDINATOR),
        "--num_processes": _first(num_processes, environment.get("JAX_NUM_PROCESSES")),
        "--process_id": _first(
            process_id,
            environment.get("JAX_PROCESS_ID"),
            environment.get("JOB_COMPLETION_INDEX"),
        ),
    }
    if given["--num_processes"] is None:
        cluster = _slurm(environment) or _open_mpi(environment) or _tpu(environment)
        if cluster is None and (coordinator or process_id is not None):
            remedy = "give --coordinator, --num_processes and --process_id together"
            raise UserError("command line", "--num_processes", "missing", remedy)
    else:
        for flag, value in given.items():
            if value is None and given["--num_processes"] != 1:
                remedy = "give it, or set JAX's variable for it (docs/pods.md)"
                raise UserError("command line", flag, "missing beside --num_processes", remedy)
        count, index = (_number(flag, given[flag]) for flag in ("--num_processes", "--process_id"))
        cluster = Cluster(given["--coordinator"] or f"localhost:{_PORT}", count, index)
    return cluster if cluster is not None and cluster.count > 1 else None


def _first(*values):
    return next((value for value in values if value is not None), None)


def _number(name, value):
    try:
        return int(value or 0)
    except ValueError:
        raise UserError("environment", name, f"{value!r}", "give a whole number") from None


def _slurm(environment):
    """Read what `srun` sets; a script that `sbatch` starts directly has no step's variables."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if any(name not in environment for name in names):
        return None
    job, nodes, count, index, local = (environment[name] for name in names)
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)
    host = first[1] + (first[2] or "")
    # Such as 2(x3),1: tasks on each node.
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE"))
    port = _FIRST_PORT + _number("SLURM_JOB_ID", job) % _NUM_PORTS
    return Cluster(
        environment.get(_COORDINATOR, f"{host}:{port}"),
        _number("SLURM_NTASKS", count),
        _number("SLURM_PROCID", index),
        _own_device(local, re.match(r"1(\(x\d+\))?$", per_node or ""), environment),
        "SLURM",
    )


def _open_mpi(environment):
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if any(name not in environment for name in names):
        return None
    count, index = (_number(name, environment[name]) for name in names)
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    launcher = re.search(r"^(\d+).*?(?:tcp://|tcp6://\[)([^,:\]]+)", uri)
    coordinator = environment.get(_COORDINATOR)
    if coordinator is None and launcher:
        port = _FIRST_PORT + int(launcher[1]) // 4096 % _NUM_PORTS  # a multiple of 4096 by job
        coordinator = f"{launcher[2]}:{port}"
    if coordinator is None and count > 1:
        remedy = "give --coordinator=HOST:PORT, those of rank 0"
        raise UserError("Open MPI", "coordinator", "the launcher does not say where it is", remedy)
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    local = _own_device(environment.get("OMPI_COMM_WORLD_LOCAL_RANK"), alone, environment)
    return Cluster(coordinator or f"localhost:{_PORT}", count, index, local, "Open MPI")


def _own_device(local_index, is_alone, environment):
    """Return the GPU of a process that shares its host, one each; None where it has all it sees."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    # A launcher that binds tasks to GPUs shows each task its own, as number 0.
    if is_alone or local_index is None or (visible and "," not in visible):
        return None
    return (_number("local index", local_index),)


def _tpu(environment):
    """Read the hosts of a TPU slice: GKE's variables, or a TPU VM's metadata."""
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if workers and "TPU_WORKER_ID" in environment:
        hosts = workers.split(",")
        slices, number = (
            _number(name, environment.get(name, default))
            for name, default in (("MEGASCALE_NUM_SLICES", "1"), ("MEGASCALE_SLICE_ID", "0"))
        )
        first = environment.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).split(":")[0]
        index = number * len(hosts) + _number("TPU_WORKER_ID", environment["TPU_WORKER_ID"])
        address = environment.get(_COORDINATOR, f"{first}:{_PORT}")
        return Cluster(address, slices * len(hosts), index, source="TPU")
    return _tpu_vm()


def _tpu_vm():
    """Ask the metadata of a TPU VM as JAX does; None on other machines, without any request."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    if not running_in_cloud_tpu_vm or not GceTpuCluster.is_env_present():
        return None
    count = GceTpuCluster.get_process_count()
    if count == 1:
        return None
    address = GceTpuCluster.get_coordinator_address(300, str(_PORT))
    return Cluster(address, count, GceTpuCluster.get_process_id(), source="TPU")
