"""All processes of a job meet before JAX joins them, where a mistake is still a sentence.

JAX itself ends a process with an abort where the coordinator can't be reached or two processes
have one number, crashes where its port is taken, and notices no two numbers of processes. So
process 0 listens on the coordinator's port first. Each process connects, itself included, and says
who it is in one line; when all are there process 0 lets all go on, else all get the same sentence.
"""

import contextlib
import errno
import json
import os
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from adabatch_jax.cluster.addresses import host_and_port
from adabatch_jax.cluster.membership import Membership
from adabatch_jax.system.errors import UsageError

_GREETING = "adabatch_jax meets, 1"
_LONGEST_LINE = 8192
_RETRY_SECONDS = 0.2
# How long the others wait for what process 0 has to say when their own time is over.
_LATE_SECONDS = 3.0
_MOST_NAMED = 8
_BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"


def meet(place: Membership, timeout: float, resolve_timeout: float) -> None:
    """Waits until all processes of a job are there.

    Args:
      place: this process's.
      timeout: how long to wait for the others, in seconds.
      resolve_timeout: how long the coordinator's host may be unknown.

    Raises:
      UsageError: they can't meet: the host is unknown, the port taken or never open, some didn't
        come in time, two have one number, or they differ in how many they are.
    """
    deadline = time.monotonic() + timeout
    _check_host(place.coordinator, time.monotonic() + resolve_timeout)
    myself = {
        "greeting": _GREETING, "process_id": place.process_id, "token": uuid.uuid4().hex,
        "num_processes": place.num_processes,
        "who": f"process {os.getpid()} on {socket.gethostname()}",
    }  # fmt: skip
    if place.process_id > 0:
        _join(place.coordinator, myself, deadline, timeout)
        return
    _allow_connections(place.num_processes)
    try:
        listening = _listen(place.coordinator)
    except OSError as error:
        # Perhaps it is a process of the same number that listens: it will say so.
        with contextlib.suppress(_NoAnswer):
            _ask(place.coordinator, myself, time.monotonic() + _LATE_SECONDS)
        raise UsageError(_why_not_listening(place.coordinator, error)) from None
    heard: list[str] = []  # where the address leads to another process 0, what that says

    def come_too() -> None:
        try:
            _join(place.coordinator, myself, deadline, timeout)
        except UsageError as error:
            heard.append(str(error))

    threading.Thread(target=come_too, name="rendezvous", daemon=True).start()
    sentence = _gather(listening, place, deadline, heard)
    if sentence:
        raise UsageError(sentence)


def _check_host(coordinator: str, deadline: float) -> None:
    host, port = host_and_port(coordinator)
    while True:
        try:
            socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= deadline:
                reason = error.strerror if isinstance(error, OSError) else "not a host's name"
                raise UsageError(
                    f"the coordinator's host {host!r} has no address here ({reason}); give the name "
                    "or address of process 0's machine as the others reach it."
                ) from None
        time.sleep(_RETRY_SECONDS)


def _listen(coordinator: str) -> socket.socket:
    """Listens where JAX's service will: on all addresses, or where the user says."""
    told = os.environ.get(_BIND_VARIABLE)
    if told:
        host, port = host_and_port(told, _BIND_VARIABLE)
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=4096)
    port = host_and_port(coordinator)[1]
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=4096)


def _allow_connections(num_processes: int) -> None:
    """Lifts the limit of open files, often 1,024, for as many connections; JAX needs them too."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        least, (soft, hard) = 3 * num_processes + 256, resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < least:
            most = least if hard == resource.RLIM_INFINITY else min(least, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _why_not_listening(coordinator: str, error: OSError) -> str:
    port = host_and_port(coordinator)[1]
    if error.errno == errno.EADDRINUSE:
        return (
            f"the coordinator's port {port} is taken on this machine by another program; give "
            "another one in --coordinator HOST:PORT (or JAX_COORDINATOR_PORT) to all processes."
        )
    return (
        f"process 0 can't listen on the coordinator's port {port} ({error.strerror}); "
        "give another one in --coordinator HOST:PORT to all processes."
    )


class _NoAnswer(Exception):
    """Nobody of ours answers; its text says who does."""


def _join(coordinator: str, myself: Mapping[str, Any], deadline: float, timeout: float) -> None:
    """Tells process 0 who this is, and returns when all are there."""
    while True:
        try:
            return _ask(coordinator, myself, deadline + _LATE_SECONDS)
        except _NoAnswer as error:
            if time.monotonic() >= deadline:
                raise UsageError(
                    f"process {myself['process_id']} of {myself['num_processes']} waited "
                    f"{timeout:g} s for process 0 at {coordinator}, and {error}; start all "
                    "processes, with the address of process 0's machine as the coordinator, and a "
                    "port that a firewall lets through."
                ) from None
        time.sleep(_RETRY_SECONDS)


def _ask(coordinator: str, myself: Mapping[str, Any], deadline: float) -> None:
    """Connects once; raises a UsageError with what process 0 finds wrong."""
    address = host_and_port(coordinator)
    try:
        with socket.create_connection(address, timeout=5.0) as connection:
            connection.sendall((json.dumps(myself) + "\n").encode())
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            line = connection.makefile("rb").readline(_LONGEST_LINE)
    except TimeoutError:
        raise _NoAnswer("it doesn't answer") from None
    except OSError as error:
        raise _NoAnswer(f"it can't be reached ({os.strerror(error.errno or 0)})") from None
    if not line:
        raise _NoAnswer("it has gone again")
    try:
        answer = json.loads(line)
        is_ours = answer["greeting"] == _GREETING
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise _NoAnswer("another program answers there, or a job that has begun already")
    if answer["sentence"]:
        raise UsageError(answer["sentence"])


def _gather(listening: socket.socket, place: Membership, deadline: float, heard: list[str]) -> str:
    """Process 0: answers all when all are there, or when something is wrong; returns what is."""
    there: dict[int, tuple[dict, socket.socket]] = {}
    sentence = ""
    with selectors.DefaultSelector() as selector, listening:
        listening.setblocking(False)
        selector.register(listening, selectors.EVENT_READ)
        while len(there) < place.num_processes and not sentence:
            if time.monotonic() >= deadline:
                sentence = _who_is_missing(place, there)
            elif heard:
                sentence = heard[0]
            for key, _ in selector.select(_RETRY_SECONDS):
                if key.fileobj is listening:
                    with contextlib.suppress(OSError):
                        connection = listening.accept()[0]
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ, bytearray())
                    continue
                hello = _read(key.fileobj, key.data)
                if hello == {}:
                    continue
                if hello is None:  # it has gone, or is nobody of ours
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    there = {n: pair for n, pair in there.items() if pair[1] is not key.fileobj}
                    continue
                sentence = sentence or _conflict(hello, there, place)
                there[hello["process_id"]] = (hello, key.fileobj)
        connections = [key.fileobj for key in selector.get_map().values()]
    answer = (json.dumps({"greeting": _GREETING, "sentence": sentence}) + "\n").encode()
    for connection in connections:
        if connection is not listening:
            with contextlib.suppress(OSError), connection:
                connection.send(answer)
    return sentence


def _read(connection: socket.socket, buffer: bytearray) -> dict | None:
    """What a process says of itself; {} while it isn't all there, None where it is no such thing."""
    try:
        data = connection.recv(_LONGEST_LINE)
    except BlockingIOError:
        return {}
    except OSError:
        return None
    buffer += data
    if not data or len(buffer) > _LONGEST_LINE:
        return None
    if not buffer.endswith(b"\n"):
        return {}
    try:
        hello = json.loads(buffer)
        numbers = (hello["process_id"], hello["num_processes"])
        texts = (hello["who"], hello["token"])
        is_ours = hello["greeting"] == _GREETING
    except (ValueError, TypeError, KeyError):
        return None
    del buffer[:]
    is_sound = all(type(n) is int for n in numbers) and all(type(t) is str for t in texts)
    return hello if is_ours and is_sound and 0 <= numbers[0] < numbers[1] else None


def _conflict(hello: Mapping[str, Any], there: Mapping, place: Membership) -> str:
    """What is wrong with one more process, beside those that are there."""
    number, count = hello["process_id"], hello["num_processes"]
    if count != place.num_processes:
        return (
            f"process {number} ({hello['who']}) says that there are {count} processes, and process "
            f"0 that there are {place.num_processes}; start all with the same --num-processes, and "
            "each job with a port of its own."
        )
    other = there.get(number, (hello,))[0]
    if other["token"] == hello["token"]:
        return ""
    return (
        f"two processes have the number {number} of {count}: {other['who']} and {hello['who']}; "
        "give each a --process-id of its own, and each job a port of its own."
    )


def _who_is_missing(place: Membership, there: Mapping) -> str:
    missing = [number for number in range(place.num_processes) if number not in there]
    if 0 in missing:
        return (
            f"process 0 is here ({socket.gethostname()}), and {place.coordinator} doesn't lead to "
            "it; give all processes the address of process 0's machine as the coordinator."
        )
    return (
        f"{named(missing)} of {place.num_processes} didn't come to {place.coordinator} in time; "
        "start all processes, or wait longer for them."
    )


def named(numbers: list[int]) -> str:
    """Some processes by their numbers.

    >>> named([1]), named([1, 3]), named([*range(1, 100)])
    ('process 1', 'processes 1, 3', 'processes 1, 2, 3, 4, 5, 6, 7, 8 and 91 more')
    """
    shown = ", ".join(map(str, numbers[:_MOST_NAMED]))
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"process{'es' if len(numbers) > 1 else ''} {shown}{more}"
