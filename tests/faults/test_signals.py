"""Signals that ask a run to stop: one good checkpoint, the exit code, the command that goes on."""

import random
import signal
import time

import pytest

from tests.faults.harness import (
    SETTINGS,
    assert_same,
    finish,
    start,
    wait_for,
    wait_for_training,
)

pytestmark = pytest.mark.faults

CODES = {"sigterm": 143, "sigint": 130, "sigusr1": 143}
# In an order in which each is reached in what is left of the run.
POINTS = (
    "save.scheduled:1", "save.mid:1", "save.committed:1", "gc.before:1", "gc.mid:1",
    "step.begin:2", "metrics.mid_line:1", "step.end:1", "phase.switch:1", "batch.ready:3",
    "eval.mid:2", "save.before:1",
)  # fmt: skip


def assert_stopped(run, outcome):
    """It says after which update it stopped and how to go on, and that update is saved.

    Or else that there was nothing new to save.
    """
    if "before the first update" in outcome.err:
        return
    assert run.newest() == outcome.stopped_after is not None
    assert str(run.workdir) in outcome.command
    assert not (run.workdir / "summary.json").exists()


@pytest.mark.parametrize(
    ("setting", "name"), list(zip(SETTINGS, ["sigterm", "sigusr1", "sigint"] * 2))
)
def test_a_signal_at_every_point(oracle, begin, setting, name):
    whole, run = oracle(setting), begin(setting)
    for point in POINTS:
        outcome = run.go(f"{point}:{name}", code=CODES[name])
        assert_stopped(run, outcome)
    run.go()
    assert_same(run, whole)


def test_the_command_that_is_printed_goes_on(oracle, begin):
    run = begin("carry")
    outcome = run.go("step.end:30:sigterm", code=143)
    assert_stopped(run, outcome)
    again = run.ended(start("train", *outcome.command), run.newest(), 0)
    assert again.resumed_after == 30
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_in_the_first_compile_there_is_nothing_to_save(oracle, begin, name, code):
    run = begin("carry")
    outcome = run.go(f"compile.first:1:{name}", code=code)
    assert run.steps() == [] and len((outcome.out + outcome.err).splitlines()) >= 1
    run.go()
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize(
    "point", ["batch.ready:9", "eval.mid:2", "step.begin:20", "save.mid:2", "save.before:2"]
)
def test_a_signal_in_a_wait(oracle, begin, point):
    run = begin("two_streams")
    process = run.start(f"{point}:sleep:5")
    wait_for_training(run, process)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert_stopped(run, run.ended(process, None, 143))
    run.go()
    assert_same(run, oracle("two_streams"))


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGUSR1)]
)
def test_a_second_signal_stops_at_once(oracle, begin, first, second):
    run = begin("carry")
    process = run.start("step.begin:20:sleep:20")
    wait_for(lambda: run.newest() == 14, process)
    time.sleep(0.5)  # it reaches the 20th update and sleeps
    process.send_signal(first)
    time.sleep(0.5)
    process.send_signal(second)
    run.ended(process, None, 130 if second == signal.SIGINT else 143)
    assert run.newest() == 14  # and not the one that the first signal asked for
    run.go()
    assert_same(run, oracle("carry"))


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("setting", ["carry", "drop"])
def test_a_signal_in_the_last_evaluation(oracle, begin, setting, name):
    whole, run = oracle(setting), begin(setting)
    for batch in (18, 2):  # of five evaluations of four batches, and of the one that was cut off
        assert_stopped(run, run.go(f"eval.mid:{batch}:{name}", code=CODES[name]))
        assert run.newest() == whole.newest()
    run.go()
    assert_same(run, whole)


@pytest.mark.parametrize("setting", SETTINGS)
def test_signals_at_random_times(oracle, begin, setting):
    draw = random.Random(f"signals of {setting}")
    codes = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 143}
    run = begin(setting)
    for _ in range(5):
        before, number = run.newest(), draw.choice(list(codes))
        process = run.start()
        wait_for_training(run, process)
        time.sleep(draw.uniform(0, 0.6))
        process.send_signal(number)
        code = process.wait(timeout=240)
        assert code in (0, codes[number])  # it may have been done first
        outcome = run.ended(process, before, code)
        if code == 0:
            break
        assert_stopped(run, outcome)
    run.go()
    assert_same(run, oracle(setting))


@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.8, 1.3, 2.0])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_at_the_start_ends_with_a_code_of_its_own(begin, seconds, number):
    run = begin("carry")
    process = run.start()
    time.sleep(seconds)
    process.send_signal(number)
    outcome = finish(process)
    # Before Python runs its first line the system itself ends the process.
    allowed = {130 if number == signal.SIGINT else 143, -number}
    assert outcome.code in allowed, outcome
    assert "Traceback" not in outcome.err or seconds < 0.1, outcome.err


def test_the_time_is_up(oracle, begin):
    run = begin("carry")
    outcome = run.go("step.end:20:sleep:8", code=143, further="--max-time 9s")
    assert_stopped(run, outcome)
    run.go()
    assert_same(run, oracle("carry"))


def test_a_time_without_a_unit_is_refused(begin):
    outcome = begin("carry").go(further="--max-time 90", code=2, says="--max-time")
    assert len(outcome.err.splitlines()) == 1
