"""One process fails, in whatever way: all end soon, with codes that say what helps, and go on."""

import os
import shutil
import signal
import time

import pytest

from tests.cluster.groups import TRAINING, Group, run, sound

KILLED, ABORTED, RESTART = 137, 134, 42
# As long as `--heartbeat`, and what the end itself takes on a busy machine.
SOON = 25


def fault(text):
    return {"ADABATCH_FAULT": text}


def end_soon(ended, *codes):
    """All ended, each with one of its codes, soon after the first of them."""
    for one, expected in zip(ended, codes, strict=True):
        expected = expected if isinstance(expected, tuple) else (expected,)
        assert one.code in expected, [(e.code, e.seconds, e.text[-3000:]) for e in ended]
    seconds = [one.seconds for one in ended]
    assert max(seconds) - min(seconds) < SOON, seconds


def end(folder, codes, **kwargs):
    """A run of two processes that ends so; returns how each did."""
    ended = run(folder, ["plain"], len(codes), **kwargs)
    end_soon(ended, *codes)
    return ended


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """One run whose processes are killed, one after the other, until it gets to its end."""
    folder = tmp_path_factory.mktemp("killed")
    text = {}
    # The watcher of the others, or JAX's own.
    ended = end(folder, (RESTART, KILLED), variables={1: fault("step.begin:30")})
    text["other"] = ended[0].text
    ended = end(folder, (KILLED, (RESTART, ABORTED)), variables={0: fault("save.mid:1")})
    text["checkpoints"] = sorted(os.listdir(folder / "run" / "checkpoints"))
    ended = end(folder, (RESTART, 1), own={1: ["--differs", "with_an_error_in_the_source"]})
    text["error"] = [one.text for one in ended]
    told = sound(run(folder, ["plain", "undisturbed"], 2))
    return text, told


@pytest.mark.cluster
def test_who_is_left_says_that_another_one_is_gone(killed_and_resumed):
    assert "another process of the run is gone" in killed_and_resumed[0]["other"]


@pytest.mark.cluster
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(killed_and_resumed):
    names = killed_and_resumed[0]["checkpoints"]
    assert [name for name in names if name.isdecimal()] == ["20"]
    assert len(names) == 2, "what was begun has no number"


@pytest.mark.cluster
def test_an_unexpected_error_is_told_where_it_is_and_to_the_others(killed_and_resumed):
    other, own = killed_and_resumed[0]["error"]
    assert "example 7 is broken" in own and "Traceback" in own
    assert "error: process 1: " in other and "example 7 is broken" in other
    assert "Traceback" not in other


@pytest.mark.cluster
def test_after_all_of_them_the_run_has_the_bits_of_an_undisturbed_one(killed_and_resumed):
    for resumed, whole in zip(*killed_and_resumed[1].values(), strict=True):
        assert 0 < resumed["start"] < resumed["step"]
        assert resumed["bits"] == whole["bits"]
        assert resumed["rows"] == whole["rows"]


def test_what_one_was_started_with_otherwise_is_named_by_all(tmp_path):
    ended = end(tmp_path, (2, 2), own={1: ["--differs", "with_another_seed"]})
    for one in ended:
        assert "process 1 has 6 for the seed, and process 0 has 5; all processes" in one.text


def test_an_error_in_a_loop_of_ones_own_ends_the_others_too(tmp_path):
    """Though nobody looks after that loop, it isn't left waiting for JAX's own end."""
    other, own = run(tmp_path, ["broken_loop"], 2)
    end_soon([other, own], RESTART, 1)
    assert max(other.seconds, own.seconds) < SOON
    assert "example 7 is broken" in own.text and "Traceback" in own.text
    assert "error: process 1: " in other.text and "example 7 is broken" in other.text


DIFFERENCES = {
    "with_another_schedule": "for the plan",
    "with_another_rate": "process 1 has 0.003 for lr, and process 0 has 0.002",
    "with_other_examples": "process 1 has other examples for ",
    "with_another_layout": "for `layout`",
    "with_another_program": "process 1 has 0123 for the code of adabatch_jax",
    "with_another_jax": "process 1 has 0.9.9 for the version of jax",
}


@pytest.mark.cluster
@pytest.mark.parametrize("what", DIFFERENCES)
def test_each_difference_is_named(tmp_path, what):
    for one in end(tmp_path, (2, 2), own={1: ["--differs", what]}):
        assert DIFFERENCES[what] in one.text
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.cluster
def test_a_folder_that_is_not_shared_is_refused_by_all(tmp_path):
    other = tmp_path / "elsewhere"
    for one in end(tmp_path, (2, 2), own={1: ["--own-folder", other]}):
        assert "isn't the folder here that process 0 trains in" in one.text


@pytest.mark.cluster
@pytest.mark.parametrize("who", [0, 1])
def test_a_full_disk_of_one_ends_all_as_one_of_storage(tmp_path, who):
    full = {who: ["--differs", "with_a_full_disk"]}
    for one in end(tmp_path, (5, 5), own=full):
        assert "No space left on device" in one.text
    # Where all go on without checkpoints, the last one is missing at the end.
    warn = ["--operation", '{"on_save_error": "warn"}']
    shutil.rmtree(tmp_path)
    own = {index: warn + full.get(index, []) for index in range(2)}
    for one in end(tmp_path, (5, 5), own=own):
        assert "the last checkpoint, after update 90" in one.text


@pytest.mark.cluster
@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("point", ["save.scheduled:2", "save.mid:2", "save.committed:1"])
def test_kills_around_a_save(tmp_path, who, point):
    codes = [(RESTART, ABORTED), (RESTART, ABORTED)]
    codes[who] = KILLED
    end(tmp_path, codes, variables={who: fault(point)})
    told = sound(run(tmp_path, ["plain", "undisturbed"], 2))
    for resumed, whole in zip(*told.values(), strict=True):
        assert resumed["start"] >= 20
        assert resumed["bits"] == whole["bits"] and resumed["rows"] == whole["rows"]


@pytest.mark.cluster
@pytest.mark.parametrize("who", [0, 1])
def test_one_that_was_stopped_for_long_is_given_up(tmp_path, who):
    command = [TRAINING, tmp_path, "plain", "--heartbeat", 5]
    variables = {who: fault("step.begin:30:sleep:2")}
    with Group(tmp_path / "output", command, 2, variables=variables) as group:
        metrics = tmp_path / "run" / "metrics.jsonl"
        until = time.monotonic() + 60
        while not (metrics.exists() and '"step": 28' in metrics.read_text()):
            assert time.monotonic() < until, group.text(0)
            time.sleep(0.02)
        group.signal(who, signal.SIGSTOP)
        began = time.monotonic()
        while group.processes[1 - who].poll() is None:
            assert time.monotonic() - began < SOON + 5
            time.sleep(0.1)
        group.signal(who, signal.SIGCONT)
        ended = group.ended()
    assert {one.code for one in ended} <= {RESTART, ABORTED}, [one.text[-2000:] for one in ended]


@pytest.mark.cluster
@pytest.mark.parametrize("who", [0, 1])
def test_one_that_hangs_ends_all(tmp_path, who):
    """It's alive, and never comes to where the others wait for it."""
    own = {index: ["--operation", '{"stall_timeout": 3}'] for index in range(2)}
    ended = end(
        tmp_path,
        (RESTART, RESTART),
        own=own,
        variables={who: fault("step.begin:30:sleep:600")},
    )
    assert max(one.seconds for one in ended) < 60
    assert any("took longer than 3 s (--stall-timeout)" in one.text for one in ended)


@pytest.mark.cluster
def test_one_that_compiles_for_long_is_waited_for(tmp_path):
    own = {index: ["--operation", '{"stall_timeout": 3}'] for index in range(2)}
    own[1] = [*own[1], "--differs", "with_a_slow_compiler"]
    sound(run(tmp_path, ["plain"], 2, own=own))


@pytest.mark.cluster
@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_before_the_first_update_ends_all(tmp_path, who):
    codes = [RESTART, RESTART]
    codes[who] = 143
    ended = end(tmp_path, codes, variables={who: fault("compile.first:1:sigterm")})
    assert "before the first update: there is nothing new to save" in ended[who].text
    reason = f"error: process {who}: stopped by SIGTERM before the first update."
    assert reason in ended[1 - who].text
    seconds = [one.seconds for one in ended]
    assert max(seconds) - min(seconds) < 12, "nobody waits for heartbeats"


@pytest.mark.cluster
def test_a_run_goes_on_with_other_numbers_of_processes_and_devices(tmp_path):
    """1 x 1 up to phase 2, then 4 x 1, killed, 2 x 2, stopped, 1 x 2: each example as planned."""
    until_phase = {0: ["--operation", '{"stop_at_phase": 2}']}
    [first] = sound(run(tmp_path, ["plain"], 1, own=until_phase))["plain"]
    assert (first["stopped"], first["step"], first["code"]) == (True, 51, 0)
    end(tmp_path, (RESTART, RESTART, KILLED, RESTART), variables={2: fault("step.begin:30")})
    told = sound(run(tmp_path, ["plain"], 2, 2, variables={1: fault("step.end:5:sigterm")}))
    assert [one["code"] for one in told["plain"]] == [143, 143]
    assert {one["start"] for one in told["plain"]} <= {51, 60, 80}
    last = sound(run(tmp_path, ["plain", "undisturbed"], 1, 2))
    [resumed], [whole] = last["plain"], last["undisturbed"]
    assert [row["examples_digest"] for row in resumed["rows"]] == [
        row["examples_digest"] for row in whole["rows"]
    ]
    for row, other in zip(resumed["rows"], whole["rows"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
