"""Stops, updates that aren't finite and failing saves, where several of them fall together."""

import pytest

from adabatch_jax.config import Operation
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.fault_points import InjectedFault
from adabatch_jax.system.stop_requests import Interruption
from tests.runs import small_run
from tests.runs.small_run import TRAIN, N, reproducible

PLAN = make_plan("4, 12st: 8", N, "20st")  # 8 of 12 updates, then 8 of 8


def train(workdir, on_nan="stop", **further):
    options = {"eval_source": TRAIN, "eval_batch_size": 16, "eval_every": "6st"}
    options |= {"checkpoint_every": "4st", "log_every": "3st"} | further
    with Interruption() as interruption:
        operation = Operation(on_nan, interruption=interruption)
        return small_run.train(PLAN, workdir, operation=operation, **options)


def assert_same(result, whole):
    assert not result.stopped
    assert repr(reproducible(result.history)) == repr(
        reproducible(whole.history)
    )  # NaN is like NaN
    for name in ("step", "weights_digest", "examples_digest", "decisions"):
        assert result.summary[name] == whole.summary[name], name


@pytest.mark.parametrize("batch", [2, 14])
def test_an_evaluation_that_is_cut_off_again_and_again_is_done_in_the_end(tmp_path, faults, batch):
    faults("")
    whole = train(tmp_path / "whole")
    faults(f"eval.mid:{batch}:sigterm")  # 4 batches, behind updates 6, 12, 18 and 20
    assert train(tmp_path / "cut").stopped
    faults("eval.mid:1:sigterm")
    assert train(tmp_path / "cut").stopped
    faults("")
    assert_same(train(tmp_path / "cut"), whole)


NOTHING_MEASURED = {"eval_fn": None, "eval_source": None}


@pytest.mark.parametrize("stop", [6, 7, 8, 9])
def test_a_stop_around_a_rollback_changes_nothing(tmp_path, faults, stop):
    """Not even which checkpoint it goes back to, and how many updates are left out."""
    further = {"on_nan": "rollback", **NOTHING_MEASURED}
    faults("batch.ready:7:nan")
    whole = train(tmp_path / "whole", **further)
    (decision,) = whole.summary["decisions"]
    assert (decision["checkpoint"], decision["left_out_until"]) == (4, 8)
    faults(f"batch.ready:7:nan,step.end:{stop}:sigterm")
    stopped = train(tmp_path / "cut", **further)
    assert stopped.stopped
    faults("batch.ready:1:nan" if stopped.summary["step"] == 6 else "")
    assert_same(train(tmp_path / "cut", **further), whole)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_restart_notices_a_bad_update_when_the_undisturbed_run_does(tmp_path, faults, stop):
    """Also with a checkpoint behind every update, whichever of them the restart begins with."""
    further = {"on_nan": "rollback", "checkpoint_every": "1st", "log_every": "10st"}
    further |= NOTHING_MEASURED
    faults("batch.ready:10:nan")
    whole = train(tmp_path / "whole", **further)
    faults(f"step.end:{stop}:sigterm")
    assert train(tmp_path / "cut", **further).summary["step"] == stop
    faults(f"batch.ready:{10 - stop}:nan")
    assert_same(train(tmp_path / "cut", **further), whole)


@pytest.mark.parametrize("update", [19, 20])
def test_a_run_that_ends_with_a_rollback_is_saved_whole(tmp_path, faults, update):
    further = {"on_nan": "rollback", **NOTHING_MEASURED}
    faults(f"batch.ready:{update}:nan")
    result = train(tmp_path, **further)
    faults("")
    assert_same(train(tmp_path, **further), result)
    assert result.summary["decisions"][0]["checkpoint"] == 16


def test_what_was_left_out_is_part_of_the_checkpoint_behind_it(tmp_path, faults):
    faults("batch.ready:8:nan")
    whole = train(tmp_path / "whole", on_nan="skip:3")
    faults("batch.ready:8:nan,step.end:11:raise")
    with pytest.raises(InjectedFault):
        train(tmp_path / "cut", on_nan="skip:3")
    faults("")
    assert_same(train(tmp_path / "cut", on_nan="skip:3"), whole)


def test_a_row_that_is_not_finite_waits_for_its_evaluation(tmp_path, faults):
    faults("batch.ready:6:nan")
    whole = train(tmp_path / "whole", on_nan="skip:3")
    faults("batch.ready:6:nan,eval.mid:2:sigterm")
    assert train(tmp_path / "cut", on_nan="skip:3").stopped
    faults("")
    assert_same(train(tmp_path / "cut", on_nan="skip:3"), whole)
