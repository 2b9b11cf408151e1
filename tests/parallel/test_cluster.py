"""Which processes belong together: from flags, and from the variables of each launcher."""

import pytest

from crnas_jax.errors import UserError
from crnas_jax.parallel.cluster import Cluster, find_cluster

SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[007-009,012],login1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
TPU = {"TPU_WORKER_HOSTNAMES": "t0,t1", "TPU_WORKER_ID": "1"}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4"}


def test_a_process_without_a_launcher_is_alone():
    assert find_cluster(environment={}) is None
    assert find_cluster(None, 1, None, {}) is None


def test_flags_come_before_variables():
    cluster = find_cluster("b:2", 2, 1, {**VARIABLES, "JAX_PROCESS_ID": "3"})
    assert cluster == Cluster("b:2", 2, 1)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({**VARIABLES, "JAX_PROCESS_ID": "3"}, ("a:1", 4, 3, None)),
        # Kubernetes gives each pod of an indexed Job its number.
        ({**VARIABLES, "JOB_COMPLETION_INDEX": "2"}, ("a:1", 4, 2, None)),
        (SLURM, ("gpu007:62016", 4, 2, None)),
        ({**SLURM, "SLURM_STEP_NODELIST": "n1,n2"}, ("n1:62016", 4, 2, None)),
        ({**SLURM, "SLURM_STEP_NODELIST": "n3"}, ("n3:62016", 4, 2, None)),
        # Tasks that share a node have a GPU each.
        (
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"},
            ("gpu007:62016", 4, 2, (1,)),
        ),
        # Unless each sees its own alone.
        (
            {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "3"},
            ("gpu007:62016", 4, 2, None),
        ),
        ({**SLURM, "JAX_COORDINATOR_ADDRESS": "h:9"}, ("h:9", 4, 2, None)),
        (OPEN_MPI, ("10.96.0.1:62624", 2, 1, (1,))),
        ({**OPEN_MPI, "JAX_COORDINATOR_ADDRESS": "h:9"}, ("h:9", 2, 1, (1,))),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, ("10.96.0.1:62624", 2, 1, None)),
        (TPU, ("t0:8476", 2, 1, None)),
        (
            {
                **TPU,
                "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "m:8080",
            },
            ("m:8476", 6, 5, None),
        ),
    ],
)
def test_launchers_are_known_by_their_variables(environment, expected):
    cluster = find_cluster(environment=environment)
    found = (cluster.coordinator, cluster.count, cluster.index, cluster.local_devices)
    assert found == expected


@pytest.mark.parametrize("environment", [SLURM, OPEN_MPI, TPU])
def test_a_flag_names_the_coordinator_of_a_launcher(environment):
    launched = find_cluster(environment=environment)
    named = find_cluster("h:9", None, None, environment)
    assert (named.coordinator, named.count, named.index) == ("h:9", launched.count, launched.index)


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # without srun
        {**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},
        {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    ],
)
def test_a_single_process_of_a_launcher_is_alone(environment):
    assert find_cluster(environment=environment) is None


# Of JAX, from Python 3.13 on.
@pytest.mark.filterwarnings("ignore:'maxsplit' is passed as positional:DeprecationWarning")
def test_a_tpu_vm_is_asked_for_its_metadata(monkeypatch):
    from jax._src import cloud_tpu_init
    from jax._src.clusters import cloud_tpu_cluster

    metadata = {
        "agent-worker-number": "2",
        "worker-network-endpoints": "n:0:10.0.0.5,n:1:10.0.0.6,n:2:10.0.0.7",
        "tpu-env": "ZONE: 'z'",
    }
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    monkeypatch.setattr(cloud_tpu_cluster.socket, "gethostbyname", lambda name: name)
    assert find_cluster(environment={}) == Cluster("10.0.0.5:8476", 3, 2, source="TPU")


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a:1", None, None), {}, "--num_processes: missing"),
        ((None, None, 1), {}, "--num_processes: missing"),
        ((None, 2, 0), {}, "--coordinator: missing beside"),
        (("a:1", 2, None), {}, "--process_id: missing beside"),
        (("a:1", 2, 2), {}, "process 2 of 2; count processes from 0"),
        (("a", 2, 0), {}, "--coordinator: 'a'; give host:port"),
        ((None, None, None), {**VARIABLES, "JAX_PROCESS_ID": "x"}, "'x'; give a whole number"),
        (
            (None, None, None),
            {name: OPEN_MPI[name] for name in list(OPEN_MPI)[:4]},
            "give --coordinator",
        ),
    ],
)
def test_what_is_missing_is_said(flags, environment, message):
    with pytest.raises(UserError) as error:
        find_cluster(*flags, environment)
    assert message in str(error.value)
