"""Recipes: every published figure, what is asked for, and the same shares in a run of another size."""

import itertools
import math
from fractions import Fraction

import pytest

import adabatch_jax as ab

K, M, B, T, Mi = 10**3, 10**6, 10**9, 10**12, 2**20

# What was published: what sizes and thresholds count, the sizes, where each but the first begins, and
# the length. None: not published.
PUBLISHED = {
    "gpt3-175b": ("examples", "tok", [16, 320, 624, 928, 1232, 1536],
                  [2.4 * B, 4.8 * B, 7.2 * B, 9.6 * B, 12 * B], None),
    "nemotron4-15b": ("examples", "tok", [384, 768, 1152], [200 * B, 400 * B], None),
    "palm-540b": ("examples", "st", [512, 1024, 2048], [50 * K, 115 * K], 255 * K),
    "llama3-405b": ("tokens", "tok", [4 * M, 8 * M, 16 * M], [252 * M, 2.87 * T], None),
    "minimax-01": ("tokens", "tok", [16 * M, 32 * M, 64 * M, 128 * M],
                   [69 * B, 790 * B, 4.7 * T], 10.4 * T),
    "moonlight": ("examples", "tok", [2048, 4096], [200 * B], 5.7 * T),
    "marin-8b": ("tokens", "tok", [4 * Mi, 12 * Mi, 16 * Mi], [2.77 * T, 11.1 * T], None),
    "marin-32b": ("examples", "st", [8192, 7680, 8192], [18_500, 21_010], None),
    "olmo-cbs": ("examples", "tok", [1024, 2048, 4096], [168 * B, 503 * B], None),
    "speedrun": ("tokens", "%", [131_072, 262_144, 393_216],
                 [Fraction(100, 3), Fraction(200, 3)], None),
    "late-switch": ("examples", "%", [1024, 2560], [75], 1 * T),
}  # fmt: skip
# First and last size, over how much, number of sizes, and the length.
RAMPS = {
    "bloom": ("examples", "sp", 192, 2048, 9_765_625, (2048 - 192) // 16 + 1, None),
    "deepseek-v2": ("examples", "tok", 2304, 9216, 225 * B, None, 8.1 * T),
    "deepseek-v3": ("examples", "tok", 3072, 15_360, 469 * B, None, 14.8 * T),
    "glm-4.5": ("tokens", "tok", 16 * M, 64 * M, 500 * B, None, None),
    "modernbert": ("examples", "tok", 768, 4608, 50 * B, None, None),
    "modernbert-large": ("examples", "tok", 448, 4928, 10 * B, None, None),
}
# The rate at its beginning and what it falls to; None: not published.
RATES = {
    "gpt3-175b": (6e-5, 6e-6), "nemotron4-15b": (4.5e-4, 4.5e-5), "palm-540b": (1e-2, None),
    "bloom": (6e-5, 6e-6), "llama3-405b": (8e-5, 8e-7), "glm-4.5": (2.5e-4, 2.5e-5),
    "deepseek-v2": (2.4e-4, None), "marin-32b": (7e-4, None), "modernbert": (8e-4, None),
    "modernbert-large": (5e-4, None), "moonlight": (4.2e-4, 4.2e-5), "deepseek-v3": (2.2e-4, 2.2e-5),
    "minimax-01": (2e-4, None), "marin-8b": (1e-3, None),
}  # fmt: skip
TOKENS = {"gpt3-175b": 2048, "nemotron4-15b": 4096, "palm-540b": 2048, "bloom": 2048,
          "llama3-405b": 4096, "moonlight": 8192, "speedrun": 2048}  # fmt: skip


def asked(name, sequence_length=4096):
    """Plausible figures for what nobody published."""
    recipe = ab.recipes[name]
    given = {} if recipe.sequence_length else {"tokens_per_example": sequence_length}
    if "STAGES" in recipe.batch_schedule:
        given["stages"] = 7
    if name == "speedrun":
        given["duration"] = "1Btok"
    if name == "adabatch":
        given = {"first_batch": 128, "duration": "100ep"}
    return given


def text_of(name, stages=7):
    return ab.recipes[name].batch_schedule.replace("STAGES", str(stages))


def test_all_recipes_are_here():
    assert set(ab.recipes) == {*PUBLISHED, *RAMPS, "adabatch", "seesaw"}
    assert len(ab.recipes) == len(set(ab.recipes))
    with pytest.raises(KeyError, match="did you mean 'bloom'"):
        ab.recipes["blom"]
    assert "blom" not in ab.recipes


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_and_thresholds_are_the_published_ones(name):
    counts, unit, sizes, thresholds, length = PUBLISHED[name]
    recipe = ab.recipes[name]
    schedule = ab.parse_schedule(recipe.batch_schedule)
    assert recipe.counts == counts and recipe.sequence_length == TOKENS.get(name)
    assert [size for _, size in schedule.sizes()] == sizes
    durations = [at for at, _ in schedule.sizes()][1:]
    assert [(at.value, at.unit) for at in durations] == [(Fraction(t), unit) for t in thresholds]
    assert str(schedule) == recipe.batch_schedule
    assert (recipe.duration and ab.parse_duration(recipe.duration).value) == length


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_are_the_published_ones(name):
    counts, unit, first, last, over, stages, length = RAMPS[name]
    recipe = ab.recipes[name]
    schedule = ab.parse_schedule(text_of(name))
    assert recipe.counts == counts and ("STAGES" in recipe.batch_schedule) == (stages is None)
    assert (schedule.init_value, schedule.end_value) == (first, last)
    assert (schedule.over.value, schedule.over.unit) == (over, unit)
    assert schedule.num_stages == (stages or 7)
    assert (recipe.duration and ab.parse_duration(recipe.duration).value) == length


@pytest.mark.parametrize("name", ab.recipes)
def test_rates_are_the_published_ones(name):
    recipe = ab.recipes[name]
    init_value, end_value = RATES.get(name, (None, None))
    assert ("RATE" in recipe.learning_rate) == (init_value is None)
    rate = ab.parse_learning_rate(recipe.learning_rate.replace("RATE", "1"))
    assert rate.init_value == (1 if init_value is None else Fraction(str(init_value)))
    ends = [part.end_value for part in rate.parts if part.end_value]
    assert ends == ([] if end_value is None else [Fraction(str(end_value))])
    couplings = {"olmo-cbs": "sqrt", "seesaw": "sqrt", "adabatch": "linear"}
    assert recipe.coupling == couplings.get(name, "none")


def rate_at(name, tokens, **given):
    """The rate of the update in which a token lies."""
    run = ab.recipes[name].run(**asked(name) | given)
    plan = run.plan()
    lr = ab.coupled_learning_rate(plan, ab.parse_learning_rate(run.learning_rate), run.coupling)
    step = plan.step_at(min(int(tokens) // run.tokens_per_example, plan.num_samples - 1))
    return float(lr(step))


@pytest.mark.filterwarnings("ignore:the learning rate never reaches")
def test_rates_come_where_they_were_published():
    for tokens, rate in [(1, 2.2e-4), (9.99 * T, 2.2e-4), (14.4 * T, 2.2e-5), (14.7 * T, 7.3e-6)]:
        assert rate_at("deepseek-v3", tokens) == pytest.approx(rate, rel=1e-5)
    for share, factor in [(0.59, 1), (0.61, 0.316), (0.91, 0.316**2)]:
        assert rate_at("deepseek-v2", share * 8.1 * T) == pytest.approx(2.4e-4 * factor, rel=1e-5)
    assert rate_at("minimax-01", 7.19 * T) == pytest.approx(2e-4)
    assert rate_at("minimax-01", 7.21 * T) == pytest.approx(1.3e-4)
    assert rate_at("marin-8b", 2.8 * T) == pytest.approx(1.7e-3)
    assert rate_at("moonlight", 5.2001 * T) == pytest.approx(1e-4, rel=1e-2)
    for share, factor in [(0.3, 1), (0.4, 1.52), (0.7, 1.73)]:
        assert rate_at("speedrun", share * B, rate=0.02) == pytest.approx(0.02 * factor)
    for tokens, factor in [(100 * B, 1), (300 * B, 2**0.5), (600 * B, 2)]:
        assert rate_at("olmo-cbs", tokens, rate=4e-4) == pytest.approx(4e-4 * factor)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_plan_has_the_published_phases(name):
    counts, unit, sizes, thresholds, length = PUBLISHED[name]
    run = ab.recipes[name].run(**asked(name))
    plan, tokens = run.plan(), run.tokens_per_example
    per_example = tokens if counts == "tokens" else 1
    rounded = [math.floor(Fraction(size, per_example) + Fraction(1, 2)) for size in sizes]
    assert [phase.batch_size for phase in plan.phases] == rounded
    for (before, phase), threshold in zip(itertools.pairwise(plan.phases), thresholds):
        if unit == "st":
            assert phase.start_step == threshold
            continue
        if unit == "%":
            threshold = Fraction(threshold) / 100 * plan.num_samples
        else:
            threshold = Fraction(threshold) / tokens
        assert threshold <= phase.start_sample < threshold + before.batch_size
    last = max(thresholds) if length is None else length
    if unit != "%":
        position = plan.num_steps if unit == "st" else plan.num_samples * tokens
        end = last if length is not None else math.ceil(1.25 * last)
        assert 0 <= position - end < (tokens or 1)
        assert any("1.25 times the last threshold" in n for n in run.notes) == (length is None)


def test_what_nobody_published_is_asked_for_by_name():
    asked_for = {
        "deepseek-v3": "how many sizes its ramp has and how many tokens a sequence has; give `stages` "
        "and `tokens_per_example`",
        "minimax-01": "give `tokens_per_example`",
        "speedrun": "how long it is; give `duration`",
        "adabatch": "give `first_batch` and `duration`",
    }
    for name, sentence in asked_for.items():
        with pytest.raises(ab.UsageError, match=sentence):
            ab.recipes[name].run()
    with pytest.raises(
        ab.UsageError, match="which rate .* and how long it is; give `rate` and `dur"
    ):
        ab.recipes["olmo-cbs"].run(tokens_per_example=4096, has_open_end=False)
    with pytest.raises(ab.UsageError, match="`stages`: recipe bloom has its own"):
        ab.recipes["bloom"].run(stages=4)
    with pytest.raises(
        ab.UsageError, match="`recipe_length`: recipe moonlight has its own, 5.7Ttok"
    ):
        ab.recipes["moonlight"].run(recipe_length="5Ttok")
    for wrong in ("rate", "first_batch", "stages", "tokens_per_example"):
        with pytest.raises(ab.UsageError, match=f"^`{wrong}` must be "):
            ab.recipes["seesaw"].run(**{wrong: 0})
    with pytest.raises(ab.UsageError, match="which steps don't tell"):
        ab.recipes["moonlight"].run("500st")
    with pytest.raises(ab.UsageError, match="scale by more"):
        ab.recipes["gpt3-175b"].run(batch_scale="1/64")


@pytest.mark.parametrize("name", ["palm-540b", "deepseek-v2", "deepseek-v3", "minimax-01",
                                  "moonlight", "gpt3-175b", "llama3-405b", "marin-32b"])  # fmt: skip
def test_a_scaled_run_keeps_shares_and_ratios(name):
    given = asked(name, 1000)
    recipe = ab.recipes[name]
    if recipe.duration is None:
        given["recipe_length"] = "30Kst" if name == "marin-32b" else "15Ttok"
    published = recipe.run(**given).plan()
    run = recipe.run("3Ttok", "1/4", **given)
    scaled = run.plan()
    assert scaled.num_samples == 3 * T // run.tokens_per_example + (
        3 * T % run.tokens_per_example > 0
    )
    for a, b in zip(published.phases, scaled.phases, strict=True):
        assert abs(b.batch_size - a.batch_size / 4) <= 0.63  # of 977, rounded, a quarter
        share = a.start_sample / published.num_samples
        # A step more or less at the threshold.
        tolerance = a.batch_size / published.num_samples + b.batch_size / scaled.num_samples
        assert b.start_sample / scaled.num_samples == pytest.approx(share, abs=2 * tolerance)
    assert any(
        n.startswith("changed: 3Ttok in place of") and "batches x 1/4" in n for n in run.notes
    )
    assert str(ab.parse_schedule(run.batch_schedule)) == run.batch_schedule
    assert str(ab.parse_learning_rate(run.learning_rate)) == run.learning_rate


def test_a_scaled_rate_has_the_same_shape():
    lrs = []
    for duration, scale in [(None, 1), ("2Btok", "1/64")]:
        run = ab.recipes["deepseek-v3"].run(duration, scale, stages=16, tokens_per_example=512)
        plan = run.plan()
        lr = ab.coupled_learning_rate(plan, ab.parse_learning_rate(run.learning_rate), "none")
        lrs.append([float(lr(plan.step_at(plan.num_samples * k // 1000))) for k in range(1000)])
    assert lrs[0] == pytest.approx(lrs[1], rel=2e-3)
    assert run.batch_schedule == "48 to 240 over 469/148% in 16"


def test_sizes_with_equally_many_updates():
    plan = ab.recipes["modernbert"].run(stages=7, tokens_per_example=1024).plan()
    *growing, last = plan.phases
    assert [phase.batch_size for phase in plan.phases] == list(range(768, 4609, 640))
    assert max(p.num_steps for p in growing) - min(p.num_steps for p in growing) <= 1
    assert 0 <= last.start_sample - 50 * B / 1024 < 4608


def test_another_first_batch_and_its_growth():
    run = ab.recipes["adabatch"].run("100ep", first_batch=128, rate=0.01)
    plan = run.plan(50_000)
    assert plan.batch_sizes == (128, 256, 512, 1024, 2048)
    lr = ab.coupled_learning_rate(plan, ab.parse_learning_rate(run.learning_rate), run.coupling)
    rates = [float(lr(phase.start_step)) for phase in plan.phases]
    assert rates == pytest.approx([0.01 * 0.75**k for k in range(5)])


def test_seesaw_doubles_where_a_cosine_would_have_halved_the_rate():
    run = ab.recipes["seesaw"].run("1Mtok", first_batch=4, tokens_per_example=10, rate=3e-4)
    plan = run.plan()
    assert run.coupling == "sqrt" and plan.batch_sizes[:4] == (4, 8, 16, 32)
    for halvings, phase in enumerate(plan.phases[1:], 1):
        share = math.acos(2 ** (1 - halvings) - 1) / math.pi  # of (1 + cos(pi x)) / 2
        exact = share * plan.num_samples
        # The first step at or behind the threshold, which is a sample rounded up.
        before = plan.phases[halvings - 1].batch_size
        assert exact <= phase.start_sample < exact + 1 + before
    rate = ab.coupled_learning_rate(
        plan, ab.parse_learning_rate(run.learning_rate), coupling="sqrt", optimizer="adam"
    )
    rates = [float(rate(phase.start_step)) for phase in plan.phases]
    for earlier, later in zip(rates, rates[1:]):
        assert later == pytest.approx(earlier / math.sqrt(2), rel=1e-6)
