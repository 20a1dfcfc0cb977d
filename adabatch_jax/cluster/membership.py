"""A process's place among those that train together, from flags and its launcher's variables."""

import dataclasses
from collections.abc import Mapping, Sequence

from adabatch_jax.cluster.addresses import host_and_port, joined_address, port_number
from adabatch_jax.cluster.gpus import share
from adabatch_jax.cluster.launchers import ALONE, Environment, Told, told_by_launcher
from adabatch_jax.system.errors import UsageError

FLAGS = {
    "coordinator": "--coordinator", "num_processes": "--num-processes", "process_id": "--process-id",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Membership:
    """A process's place among those that train together.

    Attributes:
      coordinator: "host:port" where process 0 listens and all meet.
      num_processes: how many there are, at least 2.
      process_id: which one this is, counted from 0.
      local_devices: the numbers of the GPUs that it takes of those it sees; None: all of them.
      found_by: where this was found, for people.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None
    found_by: str


def membership(
    environment: Environment,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    gpus: Sequence[str] = (),
    told: Told | None = None,
) -> Membership | None:
    """Finds a process's place among others; None if it is alone.

    Args:
      environment: its variables.
      coordinator: "host:port" by flag; where a flag is given it goes before what variables say.
      num_processes: by flag.
      process_id: by flag.
      gpus: those that the process sees.
      told: what JAX found; it goes before the variables.

    Raises:
      UsageError: variables or flags that are half set, no numbers, or can't be together.

    >>> place = {"MASTER_ADDR": "n0", "MASTER_PORT": "29500", "RANK": "1", "WORLD_SIZE": "2"}
    >>> found = membership(place)
    >>> found.coordinator, found.num_processes, found.process_id, found.found_by
    ('n0:29500', 2, 1, 'torchrun')
    >>> membership({}) is None
    True
    >>> del place["RANK"]
    >>> membership(place)
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: RANK isn't set, while MASTER_ADDR, MASTER_PORT, ...
    """
    flags = {
        "coordinator": coordinator, "num_processes": num_processes, "process_id": process_id,
    }  # fmt: skip
    if num_processes is not None and num_processes < 1:
        raise UsageError(f"--num-processes: must be at least 1, got {num_processes}.")
    if num_processes == 1 and process_id in (None, 0):
        return None
    names = dict(FLAGS)
    if coordinator is None and environment.get("JAX_COORDINATOR_ADDRESS"):
        flags["coordinator"] = environment["JAX_COORDINATOR_ADDRESS"]
        names["coordinator"] = "JAX_COORDINATOR_ADDRESS"
    if None in flags.values():
        told = told or told_by_launcher(environment)
    else:
        told = None  # nothing is left to find out
    names = {
        name: names[name] if told is None or flags[name] is not None else told.names[name]
        for name in flags
    }
    values = {n: getattr(told, n, None) if flag is None else flag for n, flag in flags.items()}
    if all(value is None for value in values.values()):
        return None
    if values["num_processes"] == 1 and values["process_id"] in (None, 0):
        return None  # a launcher with one process
    _check_complete(values, names, told)
    host, port = host_and_port(values["coordinator"], names["coordinator"])
    if told is not None and flags["coordinator"] is None:
        port = port_number(environment.get("JAX_COORDINATOR_PORT", port), "JAX_COORDINATOR_PORT")
    number, count = values["process_id"], values["num_processes"]
    if not 0 <= number < count:
        raise UsageError(
            f"{names['process_id']}: must be from 0 to {count - 1}, as {names['num_processes']} is "
            f"{count}; got {number}."
        )
    return Membership(
        joined_address(host, port), count, number, _local_devices(told, gpus, environment),
        "flags" if told is None else told.launcher,
    )  # fmt: skip


def _check_complete(values: Mapping, names: Mapping[str, str], told: Told | None) -> None:
    missing = [names[name] for name, value in values.items() if value is None]
    if not missing:
        return
    if told is not None and told.advice and values["coordinator"] is None:
        raise UsageError(f"{told.launcher}: {told.advice}, {ALONE}.")
    present = [names[name] for name, value in values.items() if value is not None]
    # The two variables of one value are missing or there together.
    missing, present = (list(dict.fromkeys(listed)) for listed in (missing, present))
    verb = "is" if len(present) == 1 else "are"
    raise UsageError(
        f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'}n't set, while "
        f"{' and '.join(present)} {verb}; give all of --coordinator HOST:PORT --num-processes N "
        f"--process-id I, {ALONE}."
    )


def _local_devices(
    told: Told | None, gpus: Sequence[str], environment: Environment
) -> tuple[int, ...] | None:
    """The GPUs of the machine that are the process's, where it sees those of others too."""
    if told is None or told.local_id is None or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    if told.has_own_gpus or told.local_count == 1 or len(gpus) == 1:
        return None
    if told.local_count is None or not gpus:
        return (told.local_id,)  # one process for each device, as JAX takes it
    numbers = [str(number) for number in range(len(gpus))]
    return tuple(map(int, share(numbers, told.local_id, told.local_count)))
