"""Functions that are asked for batch sizes, and schedules one after the other."""

import math
import re
import warnings

import pytest

import adabatch_jax as ab
from adabatch_jax.schedules.plan import first_step_from, make_plan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.system.errors import UsageError


def asked(every, unit, num_examples=100, duration="10ep", size=10, **kwargs):
    """The positions that a plan asks for."""
    positions = []

    def fn(position):
        positions.append(position)
        return size

    make_plan(ab.sampled(fn, every, unit), num_examples, duration, **kwargs)
    return positions


def same(positions, expected):
    return [(type(p), p) for p in positions] == [(type(e), e) for e in expected]


def test_positions_are_exact():
    assert same(asked("1ep", "ep"), [*range(10)])
    assert same(asked("0.5ep", "ep", duration="2ep"), [0, 0.5, 1, 1.5])
    assert same(asked("1/3ep", "ep", duration="1ep"), [0, 1 / 3, 2 / 3])
    assert same(asked("250sp", "ep"), [0, 2.5, 5, 7.5])
    assert same(asked("25%", "ep"), [0, 2.5, 5, 7.5])
    assert same(asked("1ep", "%", duration="4ep"), [0, 25, 50, 75])
    assert same(asked("25%", "st", duration="8st"), [0, 2, 4, 6])
    assert same(asked("2st", "%", duration="8st"), [0, 25, 50, 75])
    assert same(asked("1ep", "tok", duration="3ep", tokens_per_example=7), [0, 700, 1400])
    assert same(asked("350tok", "ep", duration="2ep", tokens_per_example=7), [0, 0.5, 1, 1.5])
    assert same(asked(70, "sp", None, "210sp"), [0, 70, 140])
    # Where batches don't end at the period: a step's begin, and the step at or after it.
    assert same(asked("3st", "sp", duration="1ep", size=30), [0, 90])
    assert same(asked("1ep", "st", duration="4ep", size=30), [0, 4, 7, 10])


def test_sizes_begin_at_their_periods():
    def fn(epoch):
        return int(32 * 1.1**epoch)

    plan = make_plan(ab.sampled(fn, every="1ep", unit="ep"), 5000, "20ep")
    for epoch in range(20):
        step = first_step_from(plan, 5000 * epoch)
        assert plan.batch_size_at(step) == fn(epoch)
        if epoch:
            assert plan.batch_size_at(step - 1) == fn(epoch - 1)
    assert plan.batch_sizes == tuple(dict.fromkeys(map(fn, range(20))))
    assert ab.BatchPlan.from_dict(plan.to_dict()).fingerprint() == plan.fingerprint()


def test_equal_sizes_are_one_phase_and_a_step_may_pass_periods():
    plan = make_plan(ab.sampled(lambda sample: 30 + sample // 60, "10sp", "sp"), None, "120sp")
    assert [(p.batch_size, p.start_sample) for p in plan.phases] == [(30, 0), (31, 60)]


@pytest.mark.parametrize("size", [0, -3, 1.5, 2.0, None, "8", True])
def test_a_size_that_is_none(size):
    schedule = ab.sampled(lambda epoch: size if epoch == 2 else 8, every="1ep", unit="ep")
    with pytest.raises(UsageError, match=r"batch size at 2ep of sampled\(.*got "):
        make_plan(schedule, 100, "4ep")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((len, "1ep", "epochs"), "unknown unit 'epochs'.*did you mean 'ep'"),
        ((len, "0ep"), "`every` must be longer"),
        ((len, "1"), "has no unit"),
        ((8, "1ep"), "`fn` must be a function"),
    ],
)
def test_mistakes_of_sampled(arguments, message):
    with pytest.raises(UsageError, match=message):
        ab.sampled(*arguments)


def test_what_a_plan_cannot_ask():
    with pytest.raises(UsageError, match="exceeds num_examples=100"):
        make_plan(ab.sampled(lambda epoch: 99 + epoch, "1ep"), 100, "4ep")
    with pytest.raises(UsageError, match="^`unit`='ep' of `sampled` is in epochs, .* endless"):
        make_plan(ab.sampled(lambda epoch: 8, "10st", "ep"), None, "1Ksp")
    with pytest.raises(UsageError, match="^`unit`='tok' of `sampled` is in tokens; give `tokens"):
        make_plan(ab.sampled(lambda token: 8, "1ep", "tok"), 100, "4ep")
    with pytest.raises(UsageError, match="^the duration '2Ktok' is in tokens"):
        make_plan(ab.sampled(lambda token: 8, "2Ktok", "ep"), 100, "4ep")


def test_joined_counts_from_each_start():
    pieces = {"0ep": "10 x2 every 2ep max 40", "5ep": ab.linear_ramp(8, 32, "3ep", 4), "9ep": 5}
    plan = make_plan(ab.joined(pieces), 1000, "10ep")
    starts = {0: 10, 2: 20, 4: 40, 5: 8, 6: 16, 7: 24, 8: 32, 9: 5}
    for epoch, size in starts.items():
        step = first_step_from(plan, 1000 * epoch)
        assert plan.batch_size_at(step) == size
        assert not epoch or plan.batch_size_at(step - 1) != size
    assert plan.unreached == ()


def test_joined_pieces_of_functions_and_steps():
    def begin(position):
        return 10 + position

    pieces = {"0ep": ab.sampled(begin, "1ep"), "3ep": ab.sampled(begin, "10st", "st")}
    plan = make_plan(ab.joined(pieces), 1000, "5ep")
    first = first_step_from(plan, 3000)
    sizes = [plan.batch_size_at(first + k) for k in (-1, 0, 9, 10, 19, 20)]
    assert sizes == [12, 10, 10, 20, 20, 30]
    pieces = {"0ep": 10, "7st": "20, 1/3ep: 30, 1/2ep: 40"}  # 1/3 of 100 from sample 70 on
    plan = make_plan(ab.joined(pieces), 100, "3ep")
    assert [p.start_sample for p in plan.phases] == [0, 70, 110, 140]


@pytest.mark.filterwarnings("ignore:the batch schedule never reaches")
def test_joined_in_joined():
    inner = ab.joined({"0ep": 10, "2ep": "20, 1ep: 30", "4ep": 40})
    outer = ab.joined({"0ep": 5, "1ep": inner, "6ep": inner})
    plan = make_plan(outer, 1200, "9ep")
    epochs = {0: 5, 1: 10, 3: 20, 4: 30, 5: 40, 6: 10, 8: 20}
    assert [(p.start_sample, p.batch_size) for p in plan.phases] == [
        (1200 * epoch, size) for epoch, size in epochs.items()
    ]
    assert parse_schedule(str(outer)) == outer
    assert str(outer).startswith("5 then 1ep: (10 then 2ep: 20, 1ep: 30 then 4ep: 40) then 6ep: (")


@pytest.mark.parametrize(
    "text",
    [
        "128 then 10ep: 256",
        "128 x2 every 4ep max 512 then 20ep: 64 x1.5 every 2ep multiple 8",
        "128, 5ep: 256 then 1500st: 8 to 64 over 10% in 8 then 90%: 3",
    ],
)
def test_texts_of_joined(text):
    assert str(parse_schedule(text)) == text
    assert parse_schedule(str(parse_schedule(text))) == parse_schedule(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("128 then", "at its end: expected a duration"),
        ("128 then 10ep 64", "at '64'.*expected ':'"),
        ("128 then 10: 64", "'10' has no unit"),
        ("(128 then 10ep: 64", "at its end: expected '\\)'"),
        ("128)", "at '\\)' .character 4.: expected 'then' or nothing more"),
        ("128 x2 every 1ep then 0ep: 3", "longer than nothing"),
    ],
)
def test_mistakes_in_texts_of_joined(text, message):
    with pytest.raises(UsageError, match=message):
        parse_schedule(text)


@pytest.mark.parametrize(
    "make",
    [
        ab.joined,
        lambda pairs: ab.piecewise_constant(8, pairs),
        lambda pairs: ab.growth_from_decay(8, pairs),
        lambda pairs: make_plan(pairs, 100, "2ep"),
    ],
)
@pytest.mark.parametrize("pairs", [["8"], ["8s"], [("0ep",)], [("0ep", 8, 9)], [8], 8.5, None])
def test_what_is_no_mapping_and_no_pairs_is_refused(make, pairs):
    shown = re.escape(repr(pairs[0] if isinstance(pairs, list) else pairs))
    with pytest.raises(UsageError, match=rf"pairs of \(duration, [a-z ]+\), got {shown}\.$"):
        make(pairs)


@pytest.mark.parametrize("text", ["8", "ab", ""])
def test_a_text_is_no_mapping_either(text):
    for make in (ab.joined, lambda text: ab.piecewise_constant(8, text)):
        with pytest.raises(UsageError, match=rf"pairs of \(duration, [a-z ]+\), got '{text}'\.$"):
            make(text)


def test_mistakes_of_joined():
    with pytest.raises(UsageError, match="must begin at 0"):
        ab.joined({"1ep": 8})
    with pytest.raises(UsageError, match="must begin at 0"):
        ab.joined({})
    with pytest.raises(UsageError, match="must increase, but 2ep .* after 3ep"):
        make_plan(ab.joined({0: 8, "3ep": 9, "2ep": 7}), 100, "9ep")
    with pytest.raises(
        UsageError, match="must increase, but 1ep .sample 400. doesn't come after 2"
    ):
        make_plan(ab.joined({0: 8, "3ep": "9, 2ep: 7, 1ep: 5"}), 100, "9ep")


@pytest.mark.parametrize(
    ("schedule", "parts"),
    [
        ("8, 5ep: 16, 10ep: 24, 11ep: 32", ["'10ep: 24' and '11ep: 32': the run ends at 10ep"]),
        ("8, 1000sp: 16", ["'1000sp: 16': the run ends at 10ep (sample 1,000)"]),
        ("8, 999sp: 16", ["'999sp: 16'"]),  # no step begins there any more
        ("8, 992sp: 16", []),
        ("8, 125st: 16", ["'125st: 16'"]),
        ("8, 124st: 16", []),
        ("8, 100%: 16", ["'100%: 16'"]),
        ("8 x2 every 10ep", ["'x2 every 10ep'"]),
        ("8 x2 every 3ep", []),
        ("8 x2 every 10ep max 8", []),
        ("8 to 32 over 20ep in 4", ["'32 over 20ep'"]),
        ("8 to 32 over 9ep in 4", []),
        ("8 then 9ep: 16 then 12ep: 4", ["'12ep: 4'"]),
        (
            "8, 3ep: 12 then 2ep: 16 x2 every 20ep",
            ["'3ep: 12': what follows begins at 2ep.", "'x2 every 20ep': the run ends at 10ep"],
        ),
        ([(0, 8), (2000, 16)], ["'2000sp: 16'"]),
    ],
)
def test_what_is_never_reached_is_told(schedule, parts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = make_plan(schedule, 100, "10ep")
    told = [str(warning.message) for warning in caught]
    assert len(told) == len(parts) and tuple(told) == plan.unreached
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    for sentence, part in zip(told, parts, strict=True):
        assert sentence.startswith("the batch schedule never reaches ") and part in sentence


def test_a_continued_plan_tells_too():
    plan = make_plan("8", 100, "4ep")
    with pytest.warns(UserWarning, match="never reaches '7ep: 16': the run ends at 6ep"):
        assert plan.continued("8, 7ep: 16", 400, "6ep").unreached


def test_cosine_over_a_share_of_the_run():
    def fn(percent):
        return round(256 - 224 * (1 + math.cos(math.pi * percent / 100)) / 2)

    plan = make_plan(ab.sampled(fn, every="10%", unit="%"), None, "100Ktok", tokens_per_example=2)
    starts = [first_step_from(plan, 5000 * k) for k in range(10)]
    assert [plan.batch_size_at(step) for step in starts] == [fn(10 * k) for k in range(10)]
