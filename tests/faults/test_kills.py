"""SIGKILL at every point of a run, and at times that are drawn: nothing is lost or done twice."""

import json
import random
import signal
import time

import pytest

from tests.faults.harness import (
    SETTINGS,
    assert_rows_follow,
    assert_same,
    killed_by,
    wait_for,
    wait_for_training,
)

pytestmark = pytest.mark.faults

KILLED = killed_by(signal.SIGKILL)

# In an order in which each is reached in what is left of the run.
POINTS = (
    "compile.first:1", "step.begin:1", "batch.ready:3", "save.before:1", "step.end:10",
    "metrics.mid_line:2", "save.scheduled:2", "phase.switch:1", "eval.mid:2", "gc.before:1",
    "gc.mid:1", "save.mid:1", "save.mid:2", "save.committed:1", "eval.mid:5",
)  # fmt: skip


def num_saves_left(run, whole):
    """How many checkpoints a run will save from here on, that of its end among them."""
    last = int(whole.summary()["step"])
    newest = run.newest() or 0
    return last // 7 - newest // 7 + (last % 7 > 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_every_point(oracle, begin, setting):
    whole, run = oracle(setting), begin(setting)
    for point in POINTS:
        run.go(point, code=KILLED)
        if run.newest() is not None:
            assert_rows_follow(run, whole)
    run.go(says="done: ")
    assert_same(run, whole)
    assert run.steps() == whole.steps()


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
def test_killed_around_a_change_of_the_batch_size_and_an_epochs_end(oracle, begin, remainder):
    further = f"--remainder {remainder}"
    whole, run = oracle("carry", further), begin("carry", further)
    plan = json.loads((whole.workdir / "plan.json").read_text())
    changes = [phase["start_step"] for phase in plan["phases"][1:]]
    epoch_end = next(int(row["step"]) for row in whole.rows() if float(row["epoch"]) >= 1)
    for last in sorted([*changes, epoch_end - 2, epoch_end - 1, epoch_end]):
        run.go(run.at("step.end", last), code=KILLED)
        if last in changes and last % 7:  # a process that begins there doesn't switch
            run.go("phase.switch:1", code=KILLED)
        run.go(run.at("step.begin", last + 1), code=KILLED)
    run.go()
    assert_same(run, whole)
    assert run.steps() == whole.steps()


@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_random_times(oracle, begin, setting):
    draw = random.Random(f"kills of {setting}")
    whole, run = oracle(setting), begin(setting)
    for _ in range(5):
        before = run.newest()
        process = run.start()
        wait_for_training(run, process)
        time.sleep(draw.uniform(0, 0.6))
        process.kill()
        is_done = (run.workdir / "report.html").exists()
        run.ended(process, before, 0 if is_done and process.wait() == 0 else KILLED)
        assert_rows_follow(run, whole)
    run.go()
    assert_same(run, whole)
    assert run.steps() == whole.steps()


def test_killed_after_the_last_save(oracle, begin):
    whole, run = oracle("carry"), begin("carry")
    run.go(f"save.committed:{num_saves_left(run, whole)}", code=KILLED)
    assert run.newest() == whole.newest() and not (run.workdir / "summary.json").exists()
    run.go(says="done: ")
    assert_same(run, whole)


def test_killed_before_the_report(oracle, begin):
    whole, run = oracle("carry"), begin("carry")
    process = run.start()
    wait_for((run.workdir / "summary.json").exists, process)
    process.kill()
    run.ended(process, None, KILLED)
    assert not (run.workdir / "report.html").exists()
    run.go(says="finished already")
    assert (run.workdir / "report.html").exists()
    assert_same(run, whole)


def test_killed_while_checkpoints_are_removed_the_best_stays(oracle, begin):
    further = "--keep-checkpoints 1 --keep-every 0.9ep --checkpoint-every 5st"
    whole, run = oracle("carry", further), begin("carry", further)
    for point in ("gc.before:2", "gc.mid:3", "gc.mid:1", "gc.before:4", "gc.mid:5", "gc.mid:1"):
        run.go(point, code=KILLED)
        assert run.newest() is not None
    run.go()
    assert_same(run, whole)
    assert run.steps() == whole.steps() and len(run.steps()) > 2


def test_what_a_killed_clean_up_or_save_leaves_is_removed(begin):
    run = begin("carry")
    for point in ("save.mid:2", "gc.mid:1"):
        run.go(point, code=KILLED)
        left = {path.name for path in (run.workdir / "checkpoints").iterdir()}
        assert left - set(map(str, run.steps())), point
        run.go("step.end:25:sigterm", code=143)
        left = {path.name for path in (run.workdir / "checkpoints").iterdir()}
        assert left == set(map(str, run.steps())), point


def test_killed_in_a_first_compile_that_is_not_cached(oracle, begin, tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    run = begin("carry")
    run.go("compile.first:1", code=KILLED, **cache)
    draw = random.Random("compiling")
    for _ in range(3):
        process = run.start(**cache)
        wait_for((run.workdir / "config.json").exists, process)
        time.sleep(draw.uniform(0.5, 3))
        process.kill()
        run.ended(process, run.newest(), KILLED)
    run.go(**cache)
    assert_same(run, oracle("carry"))
