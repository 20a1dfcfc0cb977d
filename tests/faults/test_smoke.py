"""Runs to which nearly everything happens, one fault after the other; `-m faults` has all.

Each process goes on with what the faults before left; in the end every row and every weight is
that of a run that nothing happened to.
"""

import os
import signal
import time

import pytest

from tests.faults.damage import arrays, flip_bit
from tests.faults.harness import (
    NO_ARRAYS,
    assert_rows_follow,
    assert_same,
    killed_by,
    limit_file_size,
    wait_for_training,
)

KILLED = killed_by(signal.SIGKILL)


@pytest.mark.slow
def test_killed_stopped_poisoned_and_damaged(oracle, begin):
    whole, run = oracle("carry"), begin("carry")
    run.go("save.mid:2", code=KILLED)
    assert run.newest() == 7
    run.go(run.at("batch.ready", 25, "nan"), code=3, says="update 25 ")
    assert run.newest() == 21
    assert_rows_follow(run, whole)
    run.go("eval.mid:2:sigterm", code=143, says="after update 46")
    assert run.newest() == 46
    flip_bit(arrays(run.checkpoint()))
    outcome = run.go("phase.switch:1", code=KILLED, sound=42)  # in the middle of an epoch
    assert outcome.resumed_after == 42
    sound = run.steps()[-2]
    os.truncate(run.checkpoint() / "manifest", 100)
    run.go(f"step.end:{100 - sound},metrics.mid_line:9", code=KILLED, sound=sound)
    run.go(says="done: ")
    assert_same(run, whole)


@pytest.mark.faults  # each of them is in the suite by itself
def test_stopped_killed_and_the_disk_full(oracle, begin, own_cache):
    whole, run = oracle("two_streams"), begin("two_streams")
    process = run.start()
    wait_for_training(run, process)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    run.ended(process, None, 143)
    before = run.newest()
    process = run.start("step.begin:3:sleep:2", **own_cache)
    wait_for_training(run, process)
    limit_file_size(process, NO_ARRAYS)
    outcome = run.ended(process, before, 5, "File too large")
    assert len(outcome.err.splitlines()) == 1
    run.go("gc.mid:2", code=KILLED)
    run.go("step.begin:9,metrics.mid_line:2", code=KILLED)
    assert_rows_follow(run, whole)
    run.go(says="done: ")
    assert_same(run, whole)
