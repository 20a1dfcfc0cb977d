"""What a schedule of many entries costs: ten times the entries, ten times the time."""

import gc
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.reporting.planning.plan_table import plan_notes, plan_rows
from adabatch_jax.runs.resuming import plan_of_run
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.schedules.plan import BatchPlan, make_plan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.system.errors import UsageError
from tests.run_folders import found_checkpoint

FEW, MANY = 1_000, 10_000
NUM_EXAMPLES = 100


class Problem:
    """A schedule of a number of entries, one for each epoch, and all that comes of it."""

    def __init__(self, num_entries):
        self.duration = f"{num_entries}ep"
        entries = [f"{k}ep: {20 + k % 7}" for k in range(1, num_entries)]
        self.text = ", ".join(["20", *entries])
        self.in_steps = [(0, 20), *((f"{4 * k}st", 20 + k % 7) for k in range(1, num_entries))]
        rates = [f"{k}ep: {0.1 / k:.9f}" for k in range(1, num_entries)]
        self.rate_text = ", ".join(["0.2", *rates])
        self.schedule, self.rate = parse_schedule(self.text), parse_learning_rate(self.rate_text)
        self.plan = make_plan(self.schedule, NUM_EXAMPLES, self.duration)
        self.lr = coupled_learning_rate(self.plan, self.rate)
        self.config = TrainConfig(batch_schedule=self.text, epochs=num_entries)

    def compare_the_past(self):
        found = found_checkpoint(self.config, self.plan, self.plan.num_steps)
        plan_of_run(self.config, NUM_EXAMPLES, found, Path("runs/x"))

    def edited(self):
        return self.plan.continued(
            self.schedule, self.plan.samples_at(self.plan.num_steps // 2), self.duration
        )

    def planned(self, remainder):
        return make_plan(self.text, NUM_EXAMPLES, self.duration, remainder)

    def last_rates(self):
        steps = range(self.plan.num_steps - 500, self.plan.num_steps)
        return [self.lr(step) for step in steps]


WORK = {
    "parse": lambda p: parse_schedule(p.text),
    "str": lambda p: (str(p.schedule), str(p.rate)),
    "plan": lambda p: p.planned("carry"),
    "plan, partial": lambda p: p.planned("partial"),
    "plan, drop": lambda p: p.planned("drop"),
    "plan, in steps": lambda p: make_plan(p.in_steps, NUM_EXAMPLES, p.duration),
    "continued": Problem.edited,
    "fingerprint": lambda p: p.plan.fingerprint(),
    "to and from a dict": lambda p: BatchPlan.from_dict(p.plan.to_dict()),
    "steps": lambda p: sum(step.num_real for step in p.plan.steps()),
    "look-ups": lambda p: [next(p.plan.steps(s)) for s in range(0, p.plan.num_steps, 100)],
    "parse the rate": lambda p: parse_learning_rate(p.rate_text),
    "couple the rate": lambda p: coupled_learning_rate(p.plan, p.rate),
    "rates on the host": Problem.last_rates,
    "rates in jit": lambda p: jax.jit(p.lr)(3),
    "table": lambda p: (
        plan_rows(p.config, p.plan, Layouts()),
        plan_notes(p.config, p.plan, Layouts()),
    ),
    "compare the past": Problem.compare_the_past,
}


@pytest.fixture(scope="module")
def problems():
    return Problem(FEW), Problem(MANY)


def seconds(work, problem):
    """Of this thread, without the collector, which looks through all that the suite left behind."""
    gc.disable()
    try:
        begin = time.thread_time()
        work(problem)
        return time.thread_time() - begin
    finally:
        gc.enable()


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_time_is_linear_in_the_entries(problems, work):
    few, many = problems
    seconds(work, few)  # whatever is done once
    allowed = 20 * min(seconds(work, few) for _ in range(2)) + 0.2
    assert seconds(work, many) < allowed  # in the square of the entries: 100 times


def test_a_hundred_thousand_entries_are_planned_at_once():
    text = ", ".join(["20", *(f"{k}ep: {20 + k % 7}" for k in range(1, 100_000))])
    begin = time.thread_time()
    plan = make_plan(text, NUM_EXAMPLES, "100000ep")
    assert time.thread_time() - begin < 6  # some 1.3 s
    assert len(plan.phases) == 100_000


def test_host_and_jit_agree_on_a_long_schedule(problems):
    plan, lr = problems[1].plan, problems[1].lr
    steps = np.arange(0, plan.num_steps, 1_001, dtype=np.int32)
    np.testing.assert_array_equal(jax.jit(lr)(steps), [lr(int(step)) for step in steps])


@pytest.mark.parametrize("mistake", ["x", "30", "0ep: 4"])
def test_mistakes_in_a_long_text_are_quoted_with_what_is_around_them(mistake):
    entries = [f"{k}ep: {20 + k % 7}" for k in range(1, 1_000)]
    entries.insert(500, mistake)
    with pytest.raises(UsageError) as caught:
        make_plan(", ".join(["20", *entries]), NUM_EXAMPLES, "1000ep")
    assert len(str(caught.value)) < 500
    assert mistake.split(":")[0] in str(caught.value)
