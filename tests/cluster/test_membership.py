"""What each launcher's variables and the flags mean, and which of them are refused, by name."""

import re

import pytest

from adabatch_jax.cluster.gpus import share, visible_gpus
from adabatch_jax.cluster.launchers import Told, first_host
from adabatch_jax.cluster.membership import Membership, membership
from adabatch_jax.system.errors import UsageError
from tests.sentences import says

TORCHRUN = {"MASTER_ADDR": "n0", "MASTER_PORT": "29500", "RANK": "1", "WORLD_SIZE": "4"}
BATCH = {"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SLURM = BATCH | {
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[07-08]", "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_NODEID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
OPEN_MPI_4 = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
SKYPILOT = {
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
}  # fmt: skip
POD = {"KUBERNETES_SERVICE_HOST": "10.1.1.1", "JOB_COMPLETION_INDEX": "2"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
FLAGS = {"coordinator": "n1:99", "num_processes": 2, "process_id": 1}


def without(environment, *names):
    return {name: value for name, value in environment.items() if name not in names}


@pytest.mark.parametrize(
    ("environment", "flags", "place"),
    [
        ({}, FLAGS, ("n1:99", 2, 1, None, "flags")),
        (BATCH | {"RANK": "7"}, FLAGS, ("n1:99", 2, 1, None, "flags")),
        (BATCH | {"JAX_COORDINATOR_ADDRESS": "n5:7"}, without(FLAGS, "coordinator"), ("n5:7", 2, 1, None, "flags")),
        (TORCHRUN, {}, ("n0:29500", 4, 1, None, "torchrun")),
        (TORCHRUN | {"MASTER_ADDR": "fe80::1"}, {}, ("[fe80::1]:29500", 4, 1, None, "torchrun")),
        (TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"}, {}, ("n0:29501", 4, 1, None, "torchrun")),
        (SLURM | TORCHRUN, {}, ("n0:29500", 4, 1, None, "torchrun")),
        (SLURM | {"MASTER_ADDR": "n0", "WORLD_SIZE": "3"}, {}, ("n07:61441", 3, 1, (1,), "SLURM")),
        (SLURM, {}, ("n07:61441", 3, 1, (1,), "SLURM")),
        (SLURM, {"coordinator": "n9:5"}, ("n9:5", 3, 1, (1,), "SLURM")),
        (SLURM | {"JAX_COORDINATOR_PORT": "77"}, {}, ("n07:77", 3, 1, (1,), "SLURM")),
        (SLURM | {"JAX_LOCAL_DEVICE_IDS": "0,1"}, {}, ("n07:61441", 3, 1, None, "SLURM")),
        (SLURM | {"SLURM_GPUS_PER_TASK": "1"}, {}, ("n07:61441", 3, 1, None, "SLURM")),
        (SLURM | {"SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, {}, ("n07:61441", 3, 1, None, "SLURM")),
        (SLURM | OPEN_MPI_4, {}, ("10.96.0.1:62624", 4, 1, (1,), "Open MPI")),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "PMIX_NAMESPACE": "9"}, {}, ("127.0.0.1:61449", 4, 1, (1,), "Open MPI")),
        (OPEN_MPI, {"coordinator": "n9:5"}, ("n9:5", 4, 1, (1,), "Open MPI")),
        (OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "n9:5"}, {}, ("n9:5", 4, 1, (1,), "Open MPI")),
        (MPICH | {"SLURM_JOB_ID": "5"}, {}, ("127.0.0.1:61445", 2, 1, (1,), "MPI")),
        (SLURM | MPICH, {}, ("127.0.0.1:61441", 2, 1, (1,), "MPI")),
        (SLURM | {"PMI_RANK": "0", "PMI_SIZE": "9"}, {}, ("n07:61441", 3, 1, (1,), "SLURM")),
        (SKYPILOT, {}, ("10.0.0.1:8482", 2, 1, None, "SkyPilot")),
        (POD, {"coordinator": "js-w-0-0.js:8482", "num_processes": 3}, ("js-w-0-0.js:8482", 3, 2, None, "Kubernetes")),
        (POD | TORCHRUN, {}, ("n0:29500", 4, 1, None, "torchrun")),
    ],
)  # fmt: skip
def test_where_a_process_finds_the_others(environment, flags, place):
    assert membership(environment, **flags) == Membership(*place)


@pytest.mark.parametrize(
    ("environment", "flags"),
    [
        ({}, {}),
        ({}, {"num_processes": 1}),
        (BATCH, {"num_processes": 1}),
        (TORCHRUN, {"num_processes": 1}),
        (POD, {"num_processes": 1, "process_id": 0}),
        (BATCH | {"SLURM_NTASKS": "1"}, {}),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {}),
        (TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, {}),
        ({"WORLD_SIZE": "1", "RANK": "0"}, {}),
        (SKYPILOT | {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, {}),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, {}),
        ({"KUBERNETES_SERVICE_HOST": "10.1.1.1"}, {}),
        ({"RANK": "", "WORLD_SIZE": ""}, {}),
    ],
)
def test_alone(environment, flags):
    assert membership(environment, **flags) is None


@pytest.mark.parametrize(
    ("environment", "flags", "pieces"),
    [
        ({}, without(FLAGS, "process_id"), "--process-id isn't set … --coordinator and --num-processes are"),
        ({}, {"process_id": 3}, "--coordinator and --num-processes aren't set … --process-id is"),
        ({}, {"coordinator": "a:1"}, "--num-processes and --process-id aren't set … --coordinator is"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, {}, "--num-processes and --process-id aren't set … JAX_COORDINATOR_ADDRESS is"),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "n1"}, {}, "JAX_COORDINATOR_ADDRESS … HOST:PORT"),
        ({}, FLAGS | {"coordinator": "n1"}, "--coordinator … HOST:PORT … 'n1'"),
        ({}, FLAGS | {"coordinator": "n1:http"}, "--coordinator … 1 to 65535 … 'http'"),
        ({}, FLAGS | {"coordinator": "n1:0"}, "--coordinator … 1 to 65535"),
        ({}, FLAGS | {"coordinator": "n1:65536"}, "--coordinator … 1 to 65535"),
        ({}, FLAGS | {"coordinator": "::1:80"}, "--coordinator … HOST:PORT"),
        ({}, FLAGS | {"process_id": 2}, "--process-id … 0 to 1 … --num-processes is 2; got 2"),
        ({}, FLAGS | {"process_id": -1}, "--process-id … 0 to 1 … got -1"),
        ({}, FLAGS | {"num_processes": 0}, "--num-processes … at least 1, got 0"),
        ({}, {"num_processes": 1, "process_id": 1}, "--coordinator isn't set"),
        (without(TORCHRUN, "RANK"), {}, "RANK isn't set … MASTER_ADDR, MASTER_PORT, WORLD_SIZE are"),
        (without(TORCHRUN, "MASTER_ADDR", "MASTER_PORT"), {}, "MASTER_ADDR, MASTER_PORT aren't set … RANK, WORLD_SIZE are"),
        ({"MASTER_ADDR": "n0"}, {}, "MASTER_PORT, RANK, WORLD_SIZE aren't set … MASTER_ADDR is"),
        (TORCHRUN | {"RANK": "4"}, {}, "RANK … 0 to 3 … WORLD_SIZE is 4; got 4"),
        (TORCHRUN | {"RANK": "x"}, {}, "RANK … whole number … 'x'"),
        (TORCHRUN | {"RANK": "-1"}, {}, "RANK … whole number … '-1'"),
        (TORCHRUN | {"MASTER_PORT": "65535", "TORCHELASTIC_USE_AGENT_STORE": "True"}, {}, "MASTER_PORT + 1"),
        (BATCH, {}, "SLURM_NTASKS is 3 … srun … --num-processes 1"),
        ({"SLURM_JOB_ID": "1", "SLURM_NPROCS": "2"}, {}, "SLURM_NPROCS is 2 … srun"),
        (without(SLURM, "SLURM_PROCID"), {}, "SLURM_PROCID isn't set"),
        (without(SLURM, "SLURM_JOB_ID"), {}, "SLURM_JOB_ID isn't set … SLURM_NTASKS and SLURM_PROCID are"),
        (SLURM | {"JAX_COORDINATOR_PORT": "p"}, {}, "JAX_COORDINATOR_PORT … 'p'"),
        (OPEN_MPI, {}, "Open MPI … --coordinator HOST:PORT … host of process 0"),
        (OPEN_MPI_4 | {"OMPI_MCA_orte_hnp_uri": "file:x"}, {}, "OMPI_MCA_orte_hnp_uri … 'file:x'"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, {}, "OMPI_COMM_WORLD_SIZE aren't set … OMPI_COMM_WORLD_RANK is"),
        (without(OPEN_MPI_4, "OMPI_COMM_WORLD_RANK"), {}, "OMPI_COMM_WORLD_RANK isn't set"),
        (without(SKYPILOT, "SKYPILOT_NODE_RANK"), {}, "SKYPILOT_NODE_RANK isn't set … SKYPILOT_NODE_IPS and SKYPILOT_NUM_NODES are"),
        (without(SKYPILOT, "SKYPILOT_NODE_IPS"), {}, "SKYPILOT_NODE_IPS isn't set"),
        (POD, {}, "Kubernetes … JOB_COMPLETION_INDEX … --num-processes N --coordinator"),
        (POD, {"num_processes": 3}, "Kubernetes … --coordinator"),
        (POD, {"coordinator": "a:1"}, "--num-processes isn't set … --coordinator and JOB_COMPLETION_INDEX are"),
        (POD | {"JOB_COMPLETION_INDEX": "3"}, {"coordinator": "a:1", "num_processes": 3}, "JOB_COMPLETION_INDEX … 0 to 2"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_by_name(environment, flags, pieces):
    with pytest.raises(UsageError, match=says(pieces)) as error:
        membership(environment, **flags)
    assert re.fullmatch(r"[^\n]*\.", str(error.value)), "one sentence"


def test_what_jax_finds_goes_before_variables():
    told = Told("Cloud TPU", dict.fromkeys(FLAGS, "JAX's"), "10.0.0.1:8482", 4, 3)
    assert membership(POD | SKYPILOT, told=told) == Membership(
        "10.0.0.1:8482", 4, 3, None, "Cloud TPU"
    )


@pytest.mark.parametrize(
    ("gpus", "local_id", "local_count", "devices"),
    [
        (8, 0, 1, None),  # one process for each machine takes all
        (8, 1, 2, (4, 5, 6, 7)),
        (8, 7, 8, (7,)),
        (1, 3, 4, None),  # each is shown its own
        (0, 1, 2, (1,)),
    ],
)  # fmt: skip
def test_the_share_of_a_machines_gpus(gpus, local_id, local_count, devices):
    environment = SLURM | {
        "SLURM_LOCALID": str(local_id), "SLURM_STEP_TASKS_PER_NODE": f"{local_count}(x2)",
    }  # fmt: skip
    found = membership(environment, gpus=[*map(str, range(gpus))])
    assert found.local_devices == devices


def test_gpus_that_can_not_be_shared_evenly_are_refused():
    with pytest.raises(UsageError, match=says("2 processes … 3 GPUs … 1 or 3")):
        membership(SLURM, gpus=["0", "1", "2"])


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0, 2"}, ("0", "2")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f,GPU-9a", "JAX_PLATFORMS": "cuda,cpu"}, ("GPU-8f", "GPU-9a")),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"}, ()),
    ],
)  # fmt: skip
def test_which_gpus_a_process_sees(environment, gpus):
    assert visible_gpus(environment) == gpus


def test_the_shares_are_all_gpus_once():
    gpus = [*map(str, range(12))]
    for count in (1, 2, 3, 4, 6, 12):
        shares = [share(gpus, index, count) for index in range(count)]
        assert sum(map(list, shares), []) == gpus


@pytest.mark.parametrize(("name", "environment"), [("Slurm", SLURM), ("Ompi", OPEN_MPI_4)])
def test_it_is_where_jax_itself_would_meet(monkeypatch, name, environment):
    from jax._src import clusters

    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    jaxs = getattr(clusters, f"{name}Cluster")
    found = membership(environment)
    assert found.coordinator == jaxs.get_coordinator_address(None, None)
    assert found.num_processes == jaxs.get_process_count()
    assert found.process_id == jaxs.get_process_id()


def test_first_hosts_as_slurm_writes_them():
    assert [*map(first_host, ("n1", "127.0.0.[1-4]", "a-[03,5]-x,b", "n[1-2]m[3-4]"))] == [
        "n1",
        "127.0.0.1",
        "a-03-x",
        "n1m3",
    ]
