"""Stops that come from outside, wherever a run is: nothing is lost, nothing is waited for."""

from threading import Event, Timer, current_thread, main_thread
from types import SimpleNamespace

import pytest

from adabatch_jax.config import Keep, Operation
from adabatch_jax.schedules.plan import make_plan
from tests.runs.small_run import N, eval_fn, loss_fn, reproducible, train


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


@pytest.mark.parametrize("damaged", [None, "metrics.jsonl", "summary.json"])
def test_what_follows_from_a_last_evaluation_that_was_cut_off(tmp_path, damaged):
    """Its row lies behind the last checkpoint, which was saved before it was measured."""
    plan = make_plan("4", N, "2ep")
    asked = SimpleNamespace(requested=False, defer=lambda: None, expect=lambda seconds: None)

    def on_step(finished, state, metrics):
        asked.requested = finished == plan.num_steps

    whole = train(plan, tmp_path / "whole")
    run = tmp_path / "run"
    cut = train(plan, run, on_step=on_step, operation=Operation(interruption=asked))
    assert cut.stopped and cut.history[-1]["step"] < plan.num_steps
    train(plan, run)
    files = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "summary.json")}
    if damaged is not None:
        (run / damaged).write_bytes(files[damaged] * 2)
    again = train(plan, run)
    assert reproducible(again.history) == reproducible(whole.history)
    assert reproducible([again.summary]) == reproducible([whole.summary])
    is_left_alone = all((run / name).read_bytes() == old for name, old in files.items())
    assert is_left_alone == (damaged is None)


@pytest.mark.parametrize(("slow", "step"), [("the update of 4", 5), ("the evaluation", 3)])
def test_a_stop_does_not_wait_for_a_compiler(slow, step, tmp_path):
    plan = make_plan("6, 5st: 4, 7st: 8", N, "1ep")  # the first and the largest are there at once
    asked = SimpleNamespace(requested=False, defer=lambda: None, expect=lambda seconds: None)
    begun, released, compiled = Event(), Event(), []

    def compile_slowly(function, what):
        """The function, which takes long to trace in the background."""

        def traced(params, model_state, batch, *rng):
            is_slow = slow == what or slow == f"{what} of {len(batch['x'])}"
            if is_slow and current_thread() is not main_thread():
                begun.set()
                released.wait(60)
                compiled.append(slow)
            return function(params, model_state, batch, *rng)

        return traced

    def on_step(finished, state, metrics):
        if finished == step:  # while the loop waits for what comes next
            Timer(0.2, lambda: setattr(asked, "requested", True)).start()

    cut = train(
        plan, tmp_path, loss_fn=compile_slowly(loss_fn, "the update"),
        eval_fn=compile_slowly(eval_fn, "the evaluation"), eval_every=f"{step}st",
        on_step=on_step, operation=Operation(interruption=asked),
    )  # fmt: skip
    waited_for = list(compiled)
    released.set()
    assert cut.stopped and cut.state.step == step and begun.is_set() and not waited_for
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
