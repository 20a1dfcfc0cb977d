"""What several processes decide together: one decides for all, or all say what they have."""

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from adabatch_jax.cluster.processes import Failure, Processes, peer_error
from adabatch_jax.system.command_lines import INTERRUPTED
from adabatch_jax.system.errors import UsageError, explained_error, one_line

Value = TypeVar("Value")


def failure_of(error: BaseException) -> tuple[str, int]:
    """What other processes are told of an error: a sentence and an exit code.

    >>> failure_of(KeyError("label")), failure_of(SystemExit(3)), failure_of(KeyboardInterrupt())
    (("KeyError: 'label'", 1), ('SystemExit: 3', 3), ('KeyboardInterrupt.', 130))
    """
    explained = explained_error(error) if isinstance(error, Exception) else None
    if explained is not None:
        return str(explained), explained.exit_code
    code = INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(error, SystemExit):  # as Python itself takes what is in it
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    name = type(error).__name__
    return f"{name}: {one_line(error)}" if str(error).strip() else f"{name}.", code


def from_first(processes: Processes, name: str, make: Callable[[], Value]) -> Value:
    """Returns to all processes what `make` returns in the first one, the only one to call it.

    Args:
      processes: those that call this alike.
      name: what it is about.
      make: returns JSON values; a process that is alone gets whatever it returns.

    Raises:
      AdabatchError: it raised an error there, which is raised in the first process as it is, and in
        others as `peer_error` says.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> from_first(ALONE, "the newest checkpoint", lambda: 351)
    351
    """
    if processes.count == 1:
        return make()
    if processes.index:
        return _value(json.loads(processes.take(name)), 0)
    value, error = _outcome(make)
    processes.give(name, json.dumps(value))
    if error is not None:
        raise error
    return _value(json.loads(json.dumps(value)), 0)


def from_all(processes: Processes, name: str, make: Callable[[], Value]) -> list[Value]:
    """Returns to all processes what `make` returns in each, by their number.

    Raises:
      AdabatchError: it raised an error in a process, which is raised there as it is, and in others
        as `peer_error` says.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> from_all(ALONE, "free memory", lambda: 2**30)
    [1073741824]
    """
    if processes.count == 1:
        return [make()]
    value, error = _outcome(make)
    told = [json.loads(text) for text in processes.exchange(name, json.dumps(value))]
    if error is not None:
        raise error
    return [_value(said, index) for index, said in enumerate(told)]


def in_turn(processes: Processes, make: Callable[[], Value]) -> Value:
    """Returns what `make` returns, called so that what one process prepares the others find there.

    The first process calls it while all others wait; then one on each other machine, whose folder
    may be another one; then the rest.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> in_turn(ALONE, lambda: "opened")
    'opened'
    """
    if processes.count == 1:
        return make()
    hosts = processes.exchange("host", socket.gethostname())
    is_first_there = hosts.index(hosts[processes.index]) == processes.index
    own_turn = 0 if processes.index == 0 else 1 if is_first_there else 2
    made: list[Value] = []
    for turn in range(3):
        if turn == own_turn:
            made.append(make())
        processes.barrier("turn")
    return made[0]


def _outcome(make: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    try:
        return {"value": make()}, None
    except Exception as error:
        sentence, code = failure_of(error)
        return {"failure": sentence, "exit_code": code}, error


def _value(said: Mapping[str, Any], index: int) -> Any:
    if "failure" in said:
        raise peer_error(Failure(index, said["failure"], said["exit_code"]))
    return said["value"]


def check_alike(processes: Processes, name: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raises a UsageError, in all processes, where one has other facts than the first one has.

    Args:
      processes: those that call this alike.
      name: what the facts are about.
      facts: returns JSON values, by what a sentence calls them; not called in a process that is
        alone.

    >>> from adabatch_jax.cluster.processes import ALONE
    >>> check_alike(ALONE, "versions", lambda: {"jax": "0.10.2"})
    """
    if processes.count == 1:
        return
    first, *others = from_all(processes, name, lambda: dict(facts()))
    for index, theirs in enumerate(others, 1):
        for fact in dict.fromkeys([*first, *theirs]):
            here, there = first.get(fact), theirs.get(fact)
            if here != there:
                raise UsageError(
                    f"process {index} has {_text(there)} for {fact}, and process 0 has "
                    f"{_text(here)}; all processes of a run must be started alike."
                )


def _text(value: Any) -> str:
    return "nothing" if value is None else f"{value}"
