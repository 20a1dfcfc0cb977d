"""The plan against a loop that takes one step after the other."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adabatch_jax.schedules.plan import BatchPlan, first_step_from, make_plan
from adabatch_jax.schedules.update_sizes import first_updates_by_size
from adabatch_jax.system.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:the batch schedule never reaches")


class OutOfOrder(Exception):
    pass


def walk(entries, num_examples, run, remainder):
    """Returns (steps, num_samples); a step is (start, batch_size, num_real)."""
    run_value, run_unit = run
    steps_in_run = run_value if run_unit == "st" else None
    samples_in_run = {
        "ep": lambda: math.ceil(run_value * num_examples),
        "sp": lambda: run_value,
        "st": lambda: None,
    }[run_unit]()

    def threshold(value, unit):
        if unit == "%":
            if steps_in_run is not None:
                return None, math.ceil(Fraction(value) * steps_in_run / 100)
            return math.ceil(Fraction(value) * samples_in_run / 100), None
        if unit == "st":
            return None, value
        return math.ceil(Fraction(value) * (num_examples if unit == "ep" else 1)), None

    thresholds = [(*threshold(v, u), size) for v, u, size in entries]
    ends, steps, c = [0], [], 0
    for unit in (0, 1):  # what can be compared without the run is, to the end
        listed = [t[unit] for t in thresholds[1:] if t[unit] is not None]
        if any(b <= a for a, b in zip([0, *listed], listed, strict=False)):
            raise OutOfOrder

    def reached_now():
        flags = [
            (sample is not None and sample <= c) or (step is not None and step <= len(steps))
            for sample, step, _ in thresholds
        ]
        places = [
            (sample if sample is not None else ends[step], size)
            for flag, (sample, step, size) in zip(flags, thresholds, strict=True)
            if flag
        ]
        # Reached before one that stands in front of it, or not after it.
        if flags != sorted(flags, reverse=True) or any(
            b[0] <= a[0] for a, b in zip(places, places[1:], strict=False)
        ):
            raise OutOfOrder
        return places

    while (c < samples_in_run) if steps_in_run is None else (len(steps) < steps_in_run):
        size = reached_now()[-1][1]
        if num_examples is not None and size > num_examples:
            raise ValueError("too large")
        room = math.inf if num_examples is None else num_examples - c % num_examples
        if remainder == "drop" and room < size:
            c += room
            continue
        limit = math.inf if samples_in_run is None else samples_in_run - c
        if remainder == "drop" and size > limit:
            break
        real = min(size, limit, room if remainder == "partial" else math.inf)
        steps.append((c, size, real))
        c += real
        ends.append(c)
    c = c if samples_in_run is None else samples_in_run
    reached_now()
    return steps, (samples_in_run if samples_in_run is not None else c)


def text(value, unit):
    return f"{float(value) if isinstance(value, Fraction) else value}{unit}"


def check(plan: BatchPlan, steps, num_samples):
    assert [(s.start_sample, s.batch_size, s.num_real) for s in plan.steps()] == steps
    assert [s.index for s in plan.steps()] == list(range(len(steps)))
    assert plan.num_steps == len(steps)
    assert plan.num_samples == num_samples
    trained = sum(real for _, _, real in steps)
    assert plan.num_dropped == (num_samples - trained if plan.remainder == "drop" else 0)
    assert plan.has_partial_batches == any(real < size for _, size, real in steps)
    for start in {0, 1, len(steps) // 3, len(steps) - 1}:
        sizes = [real for _, _, real in steps]
        firsts = {size: sizes.index(size, start) for size in dict.fromkeys(sizes[start:])}
        assert list(first_updates_by_size(plan, start).items()) == list(firsts.items())
    starts = [c for c, _, _ in steps]
    for s, (c, size, _) in enumerate(steps):
        assert plan.samples_at(s) == c
        assert plan.batch_size_at(s) == size
        assert plan.phases[next(plan.steps(s)).phase].batch_size == size
    assert plan.samples_at(len(steps)) == num_samples
    for c in range(num_samples):
        assert plan.step_at(c) == max(s for s, start in enumerate(starts) if start <= c)
        later = [s for s, start in enumerate(starts) if start >= c]
        assert first_step_from(plan, c) == (later[0] if later else len(steps))
    assert plan.step_at(num_samples) == len(steps)
    for before, after in zip(plan.phases, plan.phases[1:], strict=False):
        assert before.stop_sample == after.start_sample
        assert before.stop_step == after.start_step
        assert before.num_steps > 0
    assert plan.phases[0].start_sample == 0 and plan.phases[-1].stop_sample == num_samples
    assert BatchPlan.from_dict(plan.to_dict()) == plan


UNITS = st.sampled_from(["ep", "sp", "st", "%"])


@st.composite
def problems(draw):
    num_examples = draw(st.integers(1, 60))
    run_unit = draw(st.sampled_from(["ep", "sp", "st"]))
    run = {
        "ep": Fraction(draw(st.integers(1, 20)), 4),
        "sp": draw(st.integers(1, 300)),
        "st": draw(st.integers(1, 60)),
    }[run_unit]
    entries = [(0, "sp", draw(st.integers(1, num_examples)))]
    one_unit = draw(st.one_of(st.none(), UNITS))
    values = sorted(draw(st.lists(st.integers(1, 100), max_size=5, unique=True)))
    for value in values:
        unit = one_unit or draw(UNITS)
        value = {"ep": Fraction(value, 4), "st": value, "sp": 3 * value, "%": value}[unit]
        entries.append((value, unit, draw(st.integers(1, num_examples + 1))))
    return (
        entries,
        num_examples,
        (run, run_unit),
        draw(st.sampled_from(["carry", "partial", "drop"])),
    )


@settings(max_examples=600, deadline=None)
@given(problems())
def test_plan_equals_the_walk(problem):
    entries, num_examples, run, remainder = problem
    schedule = [(text(v, u), size) for v, u, size in entries]

    def make():
        return make_plan(schedule, num_examples, text(*run), remainder)

    try:
        steps, num_samples = walk(entries, num_examples, run, remainder)
    except OutOfOrder:
        with pytest.raises(UsageError, match="must increase|exceeds num_examples"):
            make()
        return
    except ValueError:
        with pytest.raises(UsageError, match="exceeds num_examples|must increase"):
            make()
        return
    if not steps:
        with pytest.raises(UsageError, match="no step"):
            make()
        return
    check(make(), steps, num_samples)


@settings(max_examples=300, deadline=None)
@given(problems(), st.data())
def test_continued_equals_the_walk_that_changes_its_mind(problem, data):
    entries, num_examples, run, remainder = problem
    schedule = [(text(v, u), size) for v, u, size in entries]
    try:
        plan = make_plan(schedule, num_examples, text(*run), remainder)
    except UsageError:
        return
    step = data.draw(st.integers(0, plan.num_steps))
    size = data.draw(st.integers(1, num_examples))
    more = data.draw(st.integers(1, 2 * num_examples))
    start = plan.samples_at(step)
    duration = f"{max(start, plan.num_samples) + more}sp"
    try:
        longer = plan.continued(size, start, duration)
    except UsageError as error:
        assert step == 0 and "no step" in str(error)
        return
    kept = [(s.start_sample, s.batch_size, s.num_real) for s in plan.steps()][:step]
    rest, c = [], start
    while c < longer.num_samples:
        room = num_examples - c % num_examples
        if remainder == "drop" and room < size:
            c += room
            continue
        if remainder == "drop" and c + size > longer.num_samples:
            break
        real = min(size, longer.num_samples - c, room if remainder == "partial" else size)
        rest.append((c, size, real))
        c += real
    check(longer, kept + rest, longer.num_samples)
    assert longer.fingerprint(start) == plan.fingerprint(start)
