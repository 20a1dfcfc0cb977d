"""What a launcher's variables say of a process: how many there are, which one it is, where to meet.

Pure functions of the environment; nothing is asked of a network or a device.
"""

import dataclasses
import re
import zlib
from collections.abc import Mapping

from adabatch_jax.cluster.addresses import DEFAULT_PORT, joined_address, port_number
from adabatch_jax.system.errors import UsageError

Environment = Mapping[str, str]

# Above the ports that Linux gives to outgoing connections, which might have taken it (as JAX).
_FIRST_PORT, _NUM_PORTS = 65535 - 2**12 + 1, 2**12
ALONE = "or say --num-processes 1 to train alone"


@dataclasses.dataclass(frozen=True)
class Told:
    """What one launcher's variables say; None is what they leave open.

    Attributes:
      launcher: its name, for people.
      names: the variable of each of the three values, for people.
      local_id: which one of the processes on its machine this is.
      local_count: how many processes its machine has.
      has_own_gpus: whether the launcher shows each process its own GPUs only.
      advice: what to do where the coordinator is open.
    """

    launcher: str
    names: Mapping[str, str]
    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    local_id: int | None = None
    local_count: int | None = None
    has_own_gpus: bool = False
    advice: str = ""


def told_by_launcher(environment: Environment) -> Told | None:
    """What the innermost launcher says: torchrun and mpirun may be started by SLURM's."""
    launchers = (_torchrun, _mpi, _slurm, _skypilot, _indexed_job, _half_torchrun)
    return next(filter(None, (launcher(environment) for launcher in launchers)), None)


def _whole(environment: Environment, *names: str) -> int | None:
    """The number in the first of some variables that is set."""
    for name in names:
        if environment.get(name, "") != "":
            if not re.fullmatch("[0-9]{1,9}", environment[name].strip()):
                raise UsageError(f"{name}: must be a whole number, got {environment[name]!r}.")
            return int(environment[name])
    return None


def _agreed_port(text: str) -> int:
    """A port that all processes of a job work out alike from what its launcher calls it."""
    number = int(text) if text.isdecimal() else zlib.crc32(text.encode())
    return _FIRST_PORT + number % _NUM_PORTS


_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


def _torchrun(environment: Environment) -> Told | None:
    if not all(environment.get(name) for name in _TORCHRUN):
        return None
    port = port_number(environment["MASTER_PORT"], "MASTER_PORT")
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port = port_number(port + 1, "MASTER_PORT + 1")  # torchrun itself listens on the port
    return Told(
        "torchrun",
        {"coordinator": "MASTER_ADDR", "num_processes": "WORLD_SIZE", "process_id": "RANK"},
        joined_address(environment["MASTER_ADDR"], port),
        _whole(environment, "WORLD_SIZE"),
        _whole(environment, "RANK"),
        _whole(environment, "LOCAL_RANK"),
        _whole(environment, "LOCAL_WORLD_SIZE"),
    )


def _half_torchrun(environment: Environment) -> Told | None:
    """Raises an error where some of its variables are set, and no other launcher is known."""
    present = [name for name in _TORCHRUN if environment.get(name)]
    if not present or _whole(environment, "WORLD_SIZE") == 1:
        return None
    missing = [name for name in _TORCHRUN if name not in present]
    raise UsageError(
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'}n't set, while "
        f"{', '.join(present)} {'is' if len(present) == 1 else 'are'}; torchrun sets all four: set "
        f"the others too, unset these, {ALONE}."
    )


def _mpi(environment: Environment) -> Told | None:
    """Open MPI 4 says where mpirun is; 5, and MPICH's and Intel's, only how many there are."""
    is_open_mpi = any(environment.get(f"OMPI_COMM_WORLD_{name}") for name in ("SIZE", "RANK"))
    is_mpiexec = bool(environment.get("PMI_SIZE"))
    if "SLURM_STEP_ID" in environment and "MPI_LOCALRANKID" not in environment:
        is_mpiexec = False  # srun sets PMI_SIZE too
    if not is_open_mpi and not is_mpiexec:
        return None
    start = "OMPI_COMM_WORLD_" if is_open_mpi else "PMI_"
    local = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    local_id, local_count = local if is_open_mpi else ("MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    told = Told(
        "Open MPI" if is_open_mpi else "MPI",
        {
            "coordinator": "--coordinator (or OMPI_MCA_orte_hnp_uri)",
            "num_processes": f"{start}SIZE",
            "process_id": f"{start}RANK",
        },
        None,
        _whole(environment, f"{start}SIZE"),
        _whole(environment, f"{start}RANK"),
        _whole(environment, local_id),
        _whole(environment, local_count),
    )
    if told.num_processes is not None and told.process_id is not None:
        advice = "its mpirun doesn't say where process 0 is; give --coordinator HOST:PORT with the "
        advice += "host of process 0 (JAX_COORDINATOR_ADDRESS does as well)"
        told = dataclasses.replace(told, advice=advice)
    return dataclasses.replace(told, coordinator=_mpi_coordinator(environment, told))


def _mpi_coordinator(environment: Environment, told: Told) -> str | None:
    uri = environment.get("OMPI_MCA_orte_hnp_uri")
    if uri:  # such as 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911
        match = re.match(r"(\d+)\..*?;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
        if match is None:
            raise UsageError(
                f"OMPI_MCA_orte_hnp_uri: no address can be read in {uri!r}; give --coordinator "
                "HOST:PORT with the host of process 0."
            )
        port = _agreed_port(str(int(match[1]) // 2**12))  # job numbers are multiples of that
        return joined_address(match[2] or match[3], port)
    job = environment.get("PMIX_NAMESPACE", environment.get("SLURM_JOB_ID", ""))
    if told.num_processes is not None and told.local_count == told.num_processes:
        return joined_address("127.0.0.1", _agreed_port(job))
    return None


def _slurm(environment: Environment) -> Told | None:
    job, nodes = environment.get("SLURM_JOB_ID"), environment.get("SLURM_STEP_NODELIST")
    if not job and "SLURM_STEP_ID" not in environment:
        return None
    if "SLURM_STEP_ID" not in environment or not nodes:  # a batch script, or salloc's shell
        for name in ("SLURM_NTASKS", "SLURM_NPROCS"):
            if (_whole(environment, name) or 1) > 1:
                raise UsageError(
                    f"{name} is {environment[name]}, and this process wasn't started by srun, so it "
                    f"would train alone; begin the command with srun, {ALONE}."
                )
        return None
    per_task = environment.get("SLURM_GPUS_PER_TASK") or environment.get("SLURM_TRES_PER_TASK", "")
    return Told(
        "SLURM",
        {
            "coordinator": "SLURM_STEP_NODELIST" if job else "SLURM_JOB_ID",
            "num_processes": "SLURM_NTASKS",
            "process_id": "SLURM_PROCID",
        },
        joined_address(first_host(nodes), _agreed_port(job)) if job else None,
        _whole(environment, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        _whole(environment, "SLURM_PROCID"),
        _whole(environment, "SLURM_LOCALID"),
        _tasks_here(environment),
        has_own_gpus=per_task.isdecimal() or "gpu" in per_task,
    )


def first_host(nodes: str) -> str:
    """The first host of a list as SLURM writes it.

    >>> first_host("n[007-015],m1"), first_host("rack[2,4]-n[1-3]"), first_host("a,b")
    ('n007', 'rack2-n1', 'a')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _tasks_here(environment: Environment) -> int | None:
    """How many tasks SLURM started on this node, from a text such as "2(x3),1"."""
    counts = []
    for text in filter(None, environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", text)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = _whole(environment, "SLURM_NODEID")
    return counts[node] if node is not None and node < len(counts) else None


def _skypilot(environment: Environment) -> Told | None:
    names = ("SKYPILOT_NODE_IPS", "SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK")
    if not any(environment.get(name) for name in names):
        return None
    hosts = environment.get("SKYPILOT_NODE_IPS", "").split()
    return Told(
        "SkyPilot",
        dict(zip(("coordinator", "num_processes", "process_id"), names, strict=True)),
        joined_address(hosts[0], DEFAULT_PORT) if hosts else None,
        _whole(environment, "SKYPILOT_NUM_NODES"),
        _whole(environment, "SKYPILOT_NODE_RANK"),
    )


def _indexed_job(environment: Environment) -> Told | None:
    """A pod of an indexed Job or a JobSet of Kubernetes: which one of how many isn't told."""
    if "KUBERNETES_SERVICE_HOST" not in environment or not environment.get("JOB_COMPLETION_INDEX"):
        return None
    return Told(
        "Kubernetes",
        {
            "coordinator": "--coordinator",
            "num_processes": "--num-processes",
            "process_id": "JOB_COMPLETION_INDEX",
        },
        None,
        None,
        _whole(environment, "JOB_COMPLETION_INDEX"),
        advice="JOB_COMPLETION_INDEX says which pod this is, and nothing how many there are and "
        "where the first one is; give --num-processes N --coordinator POD-0.SERVICE:PORT (of a "
        "JobSet JOBSET-REPLICATED_JOB-0-0.JOBSET:PORT), or install the package kubernetes, with "
        "which JAX asks the cluster",
    )
