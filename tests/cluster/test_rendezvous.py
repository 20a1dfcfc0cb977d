"""Processes that meet, or can't: one sentence for all of them. Threads stand for processes."""

import concurrent.futures
import http.server
import json
import re
import socket
import sys
import threading
import time

import pytest

from adabatch_jax.cluster.local_processes import free_port
from adabatch_jax.cluster.membership import Membership
from adabatch_jax.cluster.rendezvous import meet
from adabatch_jax.system.errors import UsageError
from tests.sentences import says


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


def outcomes(address, *processes, timeout=10.0, delays=()):
    """What each (number, count) gets: "" where it met the others, else the sentence."""

    def one(number, count, delay):
        time.sleep(delay)
        try:
            meet(Membership(address, count, number, None, "flags"), timeout, resolve_timeout=1.0)
        except UsageError as error:
            return str(error)
        return ""

    delays = delays or [0.0] * len(processes)
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        started = [pool.submit(one, *p, delay) for p, delay in zip(processes, delays, strict=True)]
        return [future.result(timeout=60) for future in started]


@pytest.mark.parametrize("count", [2, 5, 40])
def test_all_meet_in_whatever_order_they_start(address, count):
    delays = [0.3 if number == 0 else 0.0 for number in range(count)]
    processes = [(number, count) for number in range(count)]
    assert outcomes(address, *processes, delays=delays) == [""] * count
    # The port is free for JAX.
    with socket.create_server(("", int(address.split(":")[1]))):
        pass


def test_two_with_one_number_are_named_to_all(address):
    told = outcomes(address, (0, 3), (1, 3), (1, 3))
    assert len(set(told)) == 1
    assert re.search(says("two processes have the number 1 of 3 … process … and process"), told[0])


def test_two_with_number_0(address):
    told = outcomes(address, (0, 2), (0, 2), delays=[0, 0.5])
    assert all(re.search("two processes have the number 0 of 2", sentence) for sentence in told)


def test_numbers_of_processes_that_differ(address):
    told = outcomes(address, (0, 2), (1, 3))
    pattern = says("process 1 ( … there are 3 processes, and process 0 that there are 2")
    assert all(re.search(pattern, sentence) for sentence in told)


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address on Linux only")
@pytest.mark.parametrize("is_somebody_there", [True, False])
def test_an_address_that_leads_elsewhere_than_to_process_0(address, monkeypatch, is_somebody_there):
    # This machine's loopback addresses stand for two machines, each with a process 0.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        if is_somebody_there:
            monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address)
            other = pool.submit(outcomes, address, (0, 2))
            time.sleep(0.3)
        monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", address.replace(".1:", ".2:"))
        [told] = outcomes(address, (0, 2), timeout=1.0)
        if is_somebody_there:
            assert re.search("two processes have the number 0 of 2", told)
            assert other.result() == [told]
        else:
            assert re.search(says(f"process 0 is here … {address} doesn't lead to it"), told)


def test_who_does_not_come_is_named_to_those_that_did(address):
    told = outcomes(address, (0, 4), (2, 4), timeout=1.0)
    assert all(re.search("processes 1, 3 of 4 didn't come", sentence) for sentence in told)


def test_a_process_0_that_never_comes(address):
    [told] = outcomes(address, (1, 2), timeout=0.5)
    assert re.search(says(f"process 1 of 2 waited 0.5 s … {address} … refused"), told)


def test_a_host_without_an_address():
    [told] = outcomes("no.such.host.invalid:99", (1, 2), timeout=0.5)
    assert re.search(says("'no.such.host.invalid' has no address"), told)


def test_a_port_that_another_program_has():
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = outcomes(f"127.0.0.1:{port}", (0, 2), (1, 2), timeout=0.5)
        server.shutdown()
    assert re.search(f"port {port} is taken", told[0])
    assert re.search("another program answers there", told[1])


def test_a_port_whose_listener_says_nothing_is_taken(address):
    port = int(address.split(":")[1])
    with socket.create_server(("127.0.0.1", port)):
        [told] = outcomes(address, (0, 2), timeout=0.5)
    assert re.search(f"port {port} is taken", told)


def test_strangers_on_the_port_and_a_process_that_starts_again_do_no_harm(address):
    host, port = address.split(":")

    def disturb():
        time.sleep(0.3)
        gone = {
            "greeting": "adabatch_jax meets, 1", "process_id": 1, "num_processes": 3,
            "who": "one that is killed", "token": "t",
        }  # fmt: skip
        for line in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            b"{}\n",
            b"\xff" * 9000,
            json.dumps(gone).encode() + b"\n",
        ):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(line)
                time.sleep(0.05)

    thread = threading.Thread(target=disturb)
    thread.start()
    assert outcomes(address, (0, 3), (1, 3), (2, 3), delays=[0, 1.5, 1.5]) == [""] * 3
    thread.join()
