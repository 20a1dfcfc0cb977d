"""Which layout is chosen: decided from numbers, without a device."""

import pytest

from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.automatic_layout import (
    Choice,
    Circumstances,
    Need,
    choose_layout,
    choose_steps_per_dispatch,
)

FIXED_BYTES, ROW_BYTES, EXAMPLE_BYTES = 100, 10, 500


def circumstances(**given):
    return Circumstances(
        **{
            "batch_size": 64,
            "group_rows": None,
            "num_devices": 1,
            "platform": "gpu",
            "limit_bytes": 10**9,
            "weight_bytes": 0,
            **given,
        }  # fmt: skip
    )


def chosen(microbatch_size, saved={}, input="auto", row_bytes=ROW_BYTES, **given):
    """The choice, the notes, and what was tried for it."""
    of, tried = circumstances(**given), []

    def needs(choice):
        tried.append(choice)
        is_resident = choice.input != "streaming"
        temporary = row_bytes * min(choice.microbatch_size or 64, 64) // of.num_devices
        return Need(FIXED_BYTES + temporary + EXAMPLE_BYTES * is_resident, temporary, is_resident)

    made = choose_layout(microbatch_size, input, saved, of, lambda rows: row_bytes * rows, needs)
    assert tried[-1] == made[0]  # so that what was tried last can be kept
    return *made, tried


@pytest.mark.parametrize(
    ("microbatch_size", "given", "expected", "num_tried"),
    [
        (None, {}, Choice(None), 1),
        (16, {}, Choice(16), 1),
        ("auto", {}, Choice(None), 1),
        # 740 bytes with the examples, 1,240 if they are on the device.
        ("auto", {"limit_bytes": 740}, Choice(None, "streaming"), 2),
        (None, {"limit_bytes": 740}, Choice(None, "streaming"), 2),
        # Half of the rows, then what is left for them in a power of two.
        ("auto", {"limit_bytes": 739}, Choice(32, "streaming"), 3),
        ("auto", {"limit_bytes": 200}, Choice(8, "streaming"), 3),
        ("auto", {"limit_bytes": 200, "num_devices": 4}, Choice(32, "streaming"), 3),
        ("auto", {"limit_bytes": 200, "group_rows": 5}, Choice(10, "streaming"), 3),
        # A CPU takes what stays in its caches, where micro-batches change nothing.
        ("auto", {"platform": "cpu"}, Choice(None), 1),
        ("auto", {"platform": "cpu", "group_rows": 1}, Choice(32), 1),
        ("auto", {"platform": "cpu", "group_rows": 1, "num_devices": 2}, Choice(None), 1),
        ("auto", {"platform": "cpu", "group_rows": 6}, Choice(24), 1),
        ("auto", {"platform": "cpu", "group_rows": 1, "row_bytes": 2**21}, Choice(8), 1),
    ],
)
def test_what_is_chosen(microbatch_size, given, expected, num_tried):
    choice, notes, tried = chosen(microbatch_size, **given)
    assert choice == expected and len(tried) == num_tried
    is_told = choice.microbatch_size and microbatch_size == "auto" and "group_rows" not in given
    assert len(notes) == bool(is_told)


def test_the_micro_batch_that_a_run_was_begun_with_stays_where_it_fits():
    assert chosen("auto", {"microbatch_size": 4})[:2] == (Choice(4), [])
    assert chosen("auto", {"microbatch_size": None}, platform="cpu", group_rows=1)[0] == Choice(
        None
    )
    assert chosen(16, {"microbatch_size": 4})[0] == Choice(16)
    choice, notes, _ = chosen("auto", {"microbatch_size": 32}, limit_bytes=200)
    assert choice == Choice(8, "streaming")
    assert "begun with micro-batches of 32" in notes[0] and "micro-batches of 8" in notes[1]


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError) as refused:
        chosen(16, limit_bytes=250)
    assert str(refused.value) == (  # golden
        "batch 64 (micro-batch 16) needs 260 bytes on each device, resident input "
        "included, and there are 250 (device_memory); let microbatch_size be 'auto', or smaller."
    )
    with pytest.raises(UsageError, match="micro-batch 64.* 740 .* 700"):
        chosen(100, limit_bytes=700)
    with pytest.raises(UsageError, match="micro-batch 4: .* 140 bytes .* 130"):
        chosen("auto", limit_bytes=130, group_rows=4)
    with pytest.raises(UsageError, match="batch 64"):  # the user wants the examples there
        chosen(None, input="resident", limit_bytes=1000)


@pytest.mark.parametrize(
    ("least_flops", "platform", "flops", "is_slow", "expected"),
    [
        (1e6, "cpu", 2e7, False, 8),
        (1e6, "cpu", 0.0, False, 32),
        (3e7, "cpu", 0.0, False, 4),  # the bound counts where the compiler counts less
        (1e6, "cpu", 1e9, False, 1),
        (1e6, "cpu", 2e7, True, 1),
        (1e6, "gpu", 2e7, True, 32),
        (1.1e8, "cpu", None, None, 1),  # not even probed
    ],
)
def test_how_many_updates_are_dispatched_together(least_flops, platform, flops, is_slow, expected):
    probed = []

    def probe():
        probed.append(True)
        return flops, is_slow

    assert choose_steps_per_dispatch(least_flops, platform, probe) == expected
    assert bool(probed) == (flops is not None)
