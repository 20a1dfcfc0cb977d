"""A loss that is not finite: found at the update, never saved, and left out where asked for."""

import signal

import pytest

from tests.faults.harness import SETTINGS, assert_rows_follow, assert_same, killed_by

pytestmark = pytest.mark.faults

KILLED = killed_by(signal.SIGKILL)
EXACT = "--steps-per-dispatch 1"  # so that an update's batch is got ready by itself


@pytest.mark.parametrize("setting", ["carry", "two_streams"])
@pytest.mark.parametrize("step", [1, 27, 28, 29, 64, 65, 136])
def test_the_first_bad_update_is_named_and_never_saved(oracle, begin, setting, step):
    whole, run = oracle(setting, EXACT), begin(setting, EXACT)
    run.go(f"batch.ready:{step}:nan", code=3, says=f"update {step} ")
    assert run.newest() == max(range(7, step, 7), default=None)
    if run.steps():
        assert_rows_follow(run, whole)
    run.go()
    assert_same(run, whole)


@pytest.mark.parametrize("setting", SETTINGS)
def test_in_every_way_to_compute(oracle, begin, setting):
    whole, run = oracle(setting), begin(setting)
    run.go("batch.ready:15:nan", code=3)
    run.go("batch.ready:9:nan", code=3)
    assert_rows_follow(run, whole)
    run.go()
    assert_same(run, whole)


@pytest.mark.parametrize("policy", ["skip:2", "rollback"])
@pytest.mark.parametrize("setting", ["carry", "drop"])
def test_killed_around_what_is_left_out(begin, tmp_path, setting, policy):
    """The same update left out, before a kill and after one; the rest of the run is the same."""
    further = f"{EXACT} --accumulation fused --on-nan {policy}"
    whole, run = begin(setting, further), begin(setting, further)
    whole.workdir = tmp_path / "whole"
    whole.go("batch.ready:31:nan")
    run.go("step.end:24", code=KILLED)  # the checkpoint of update 21 or 14 is there
    newest = run.newest()
    run.go(f"batch.ready:{31 - newest}:nan,step.end:{60 - newest}", code=KILLED)
    assert run.newest() > 31
    run.go()
    assert_same(run, whole)
    for done in (run, whole):
        assert all(row.get("train_loss") != "NaN" for row in done.rows())


def test_more_than_may_be_skipped(begin):
    run = begin("carry", f"{EXACT} --on-nan skip:2")
    faults = ",".join(f"batch.ready:{n}:nan" for n in (10, 20, 30))
    run.go(faults, code=3, says="update 30")
    assert run.newest() == 28
    # The two that were left out are part of the run's past.
    run.go("batch.ready:5:nan", code=3, says="update 33")


def test_rolling_back_twice_to_one_checkpoint(begin):
    run = begin("carry", f"{EXACT} --on-nan rollback")
    run.go("batch.ready:15:nan,batch.ready:18:nan", code=3)
    assert run.newest() == 14


def test_a_policy_that_there_is_not(begin):
    begin("carry").go(further="--on-nan ignore", code=2, says="on_nan")
