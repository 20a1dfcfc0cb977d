"""Stops that come from outside, wherever a run is: nothing is lost, nothing is waited for."""

from threading import Event
from types import SimpleNamespace

import pytest

from adabatch_jax.config import Keep, Operation
from adabatch_jax.runs.background_compilation import evaluation_program
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.training.compiled_programs import Programs
from tests.runs.small_run import N, reproducible, train


class StopIn:
    """An interruption that comes when it was asked about for the n-th time."""

    def __init__(self, number):
        self.left = number

    def defer(self):
        pass

    def expect(self, seconds):
        pass

    @property
    def requested(self):
        self.left -= 1
        return self.left <= 0


def test_the_best_checkpoint_stays_although_its_evaluation_was_cut_off(tmp_path):
    plan = make_plan("4", N, "4ep")
    epoch = plan.num_steps // 4
    options = {"keep": Keep(1, "min test_accuracy")}  # it rises: the first one
    asked = SimpleNamespace(requested=False, defer=lambda: None, expect=lambda seconds: None)

    def on_step(finished, state, metrics):
        asked.requested = finished == epoch  # where an evaluation comes next

    def saved():
        return sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())

    cut = train(plan, tmp_path, **options, on_step=on_step, operation=Operation(interruption=asked))
    assert cut.stopped and saved() == [epoch] and cut.history[-1]["step"] < epoch
    train(plan, tmp_path, **options)
    assert saved() == [epoch, plan.num_steps]


@pytest.mark.parametrize(("slow", "step"), [(("update", 1, 4), 5), (evaluation_program("test"), 3)])
def test_a_stop_does_not_wait_for_a_compiler(slow, step, tmp_path, monkeypatch):
    released, compile_now, wait = Event(), Programs._compile, Programs.wait
    plan = make_plan("6, 5st: 4, 7st: 8", N, "1ep")  # the first and the largest are there at once
    asked = SimpleNamespace(requested=False, defer=lambda: None, expect=lambda seconds: None)

    def compile_slowly(programs, name):
        if name == slow:
            released.wait(60)
        return compile_now(programs, name)

    def stop_meanwhile(programs, name, seconds):
        asked.requested = name == slow
        return False if asked.requested else wait(programs, name, seconds)

    monkeypatch.setattr(Programs, "_compile", compile_slowly)
    monkeypatch.setattr(Programs, "wait", stop_meanwhile)
    cut = train(plan, tmp_path, operation=Operation(interruption=asked), eval_every=f"{step}st")
    released.set()
    assert cut.stopped and cut.state.step == step
    assert (tmp_path / "checkpoints" / str(step)).is_dir()


def test_stopped_wherever_it_is_asked_about(tmp_path):
    plan = make_plan("6, 5st: 8", N, "1ep")
    options = {"eval_every": "0.5ep", "checkpoint_every": "3st", "eval_batch_size": 3}
    whole = train(plan, tmp_path / "whole", **options)
    stops = 0
    while True:
        operation = Operation(interruption=StopIn(2 + stops))
        cut = train(plan, tmp_path / "cut", **options, operation=operation)
        if not cut.stopped:
            break
        stops += 1
    # Waiting asks again and again, so how often depends on the machine; but it is asked after each
    # of the 9 updates and the 12 evaluated batches: 2 + 3 + 4 + 5 times always fit.
    assert stops >= 4
    assert reproducible(cut.history) == reproducible(whole.history)
    assert reproducible([cut.summary]) == reproducible([whole.summary])
