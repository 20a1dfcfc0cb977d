"""What real processes say to each other when JAX has joined them, and how they end."""

import sys

import pytest

from adabatch_jax.cluster.local_processes import free_port
from tests.cluster.conftest import PROGRAM, clean_environment, ended, start


def sums(count, devices):
    """What the sum over all devices is where each of process i holds i + 1."""
    return devices * sum(range(1, count + 1))


# A proxy for the web would swallow JAX's own connections, and with them the whole start.
def test_they_compute_and_talk_together_also_behind_a_proxy(run_together):
    nowhere = "http://127.0.0.1:9"
    for index, one in enumerate(
        run_together("all", 2, devices=2, http_proxy=nowhere, https_proxy=nowhere)
    ):
        assert one.code == 0, one.text
        [told] = one.told
        assert (told["index"], told["count"], told["local"], told["devices"]) == (index, 2, 2, 4)
        assert told["sum"] == sums(2, 2)
        assert told["said"] == [[f"ü{k}-{i}" for i in range(2)] for k in range(5)] + [["", ""]]
        assert told["there"] == [[f"{k} {i}" for i in range(2)] for k in range(5)]
        assert told["failure"] is None
        assert told["heard"] == [15], "SIGTERM reaches the program's own handler"
        assert told["again"] == index, "a second call finds the same processes"


def test_who_does_not_answer_in_time_is_named(run_together):
    first, second = run_together("late", 2)
    assert first.code == second.code == 0
    assert first.told[0]["code"] == 2
    assert first.told[0]["error"].startswith("process 1 of 2 didn't answer within 1.5 s (plan)")


def test_a_failure_of_process_0_ends_the_others_with_its_code_and_sentence(run_together):
    first, second = run_together("fail", 2)
    assert (first.code, second.code) == (5, 5)
    assert second.told[0]["error"] == "process 0: the disk is full."


def test_devices_that_are_in_use_already_are_refused():
    command = [
        sys.executable,
        PROGRAM,
        "devices first",
        "--coordinator",
        f"127.0.0.1:{free_port()}",
    ]
    flags = ["--num-processes", "2", "--process-id", "0"]
    one = ended(start([*command, *flags], clean_environment()))
    assert one.code == 2
    assert "before anything computes" in one.text


def test_torchruns_and_skypilots_variables_start_them():
    port = str(free_port())
    rows = [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        for rank in range(2)
    ]
    nodes = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_NODES": "2"}
    rows_of_nodes = [
        nodes | {"SKYPILOT_NODE_RANK": str(rank), "JAX_COORDINATOR_PORT": port} for rank in range(2)
    ]
    for variables in (rows, rows_of_nodes):
        started = [start([sys.executable, PROGRAM], clean_environment(**own)) for own in variables]
        for index, one in enumerate(map(ended, started)):
            assert one.code == 0, one.text
            assert (one.told[0]["index"], one.told[0]["sum"]) == (index, sums(2, 1))


@pytest.mark.cluster
@pytest.mark.parametrize("devices", [1, 2])
def test_four_processes(run_together, devices):
    for one in run_together("all", 4, devices=devices):
        assert one.code == 0, one.text
        assert one.told[0]["sum"] == sums(4, devices)
