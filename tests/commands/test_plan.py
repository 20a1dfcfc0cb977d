"""`python -m adabatch_jax.plan`: the table, its JSON, and mistakes."""

import contextlib
import dataclasses
import json
import shlex

import jax
import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.command_line import command_arguments, parse_arguments
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.plan import Options, main
from adabatch_jax.reporting.planning import microbatch_comparison, plan_costs, repeated_timing
from adabatch_jax.reporting.planning.microbatch_comparison import MicrobatchComparison
from adabatch_jax.reporting.planning.plan_table import plan_notes
from adabatch_jax.reporting.planning.repeated_timing import Timing
from adabatch_jax.reporting.planning.timed_updates import configured_updates
from adabatch_jax.training.time_prediction import Prediction, UpdateCost

PAPER = (
    "--dataset cifar10 --model resnet20_cifar --epochs 100 --batch-schedule 128 x2 every 20ep max "
    "2048 --lr 0.1 x0.375 every 20ep"
)


def test_the_paper_plan_as_json(command):
    content = json.loads(command(main, f"{PAPER} --no-memory --json").out)
    assert content["num_steps"] == 15_138 and content["num_samples"] == 5_000_000
    rows = content["rows"]
    assert [row["start_step"] for row in rows] == [0, 7813, 11719, 13673, 14650]
    assert [row["batch_size"] for row in rows] == [128, 256, 512, 1024, 2048]
    rates = [0.1, 0.075, 0.05625, 0.0421875, 0.031640625]
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-7)
    assert [row["learning_rate_per_example"] for row in rows] == pytest.approx(
        [0.1 * 0.375**k / 128 for k in range(5)], rel=1e-7
    )
    assert all(row["memory_bytes"] is None for row in rows)


def test_the_table_for_readers(command):
    outcome = command(main, f"{PAPER} --no-memory --remainder drop --wide")
    assert outcome.code == 0 and outcome.err == ""
    header, *lines = outcome.out.splitlines()
    for word in ("phase", "steps", "samples", "epoch", "batch", "lr/batch"):
        assert word in header
    assert lines[1].split()[:7] == ["2", "7,800", "3,900", "1,000,000", "1,000,000", "20.00", "256"]
    assert "15,080 updates" in outcome.out and "would be 39,000" in outcome.out
    assert "43,840 positions are dropped" in outcome.out


def test_what_follows_from_an_undecided_micro_batch_is_not_told(command):
    arguments = "--no-memory --batch-schedule 36, 1ep: 40, 2ep: 64 --epochs 3"
    out = command(main, arguments).out
    assert "--microbatch-size auto is chosen by --memory or when the run begins" in out
    for word in ("programs to compile", " micro-batch ", "36 x 1", "0.0 %"):
        assert word not in out
    rows = json.loads(command(main, f"{arguments} --json").out)["rows"]
    for name in ("rows_per_device", "microbatch_size", "num_microbatches", "padding_share"):
        assert {row[name] for row in rows} == {None}
    out = command(main, f"{arguments} --microbatch-size 32").out
    assert "2 programs to compile." in out and "32 x 2" in out  # the last batch is partial


def test_what_the_run_never_reaches_is_a_note(command):
    tokens = "--num-examples 1000000 --tokens-per-example 2048 --duration 1Btok --no-memory"
    rate = "--lr 0.1 x0.1 every 1.5Btok"
    outcome = command(main, f"{tokens} {rate} --batch-schedule 16, 500Mtok: 32, 2Btok: 64")
    note = "note: the batch schedule never reaches '2Btok: 64': the run ends at 1Btok (sample 488,282)."
    assert outcome.code == 0 and outcome.out.count(note) == 1
    note = "note: the learning rate never reaches 'x0.1 every 1.5Btok': the run ends at sample 488,282."
    assert outcome.out.count(note) == 1
    assert outcome.err == ""
    outcome = command(main, "--epochs 2 --batch-schedule 16, 500Mtok: 32 --no-memory")
    assert outcome.code == 2 and "'500Mtok' is in tokens; give `tokens_per_example`" in outcome.err


def test_devices_micro_batches_and_padding(command):
    arguments = f"{PAPER} --devices 8 --microbatch-size 100 --no-memory"
    rows = json.loads(command(main, f"{arguments} --json").out)["rows"]
    assert [row["num_microbatches"] for row in rows] == [2, 3, 6, 11, 21]
    assert {row["rows_per_device"] for row in rows} == {13}
    assert rows[0]["padding_share"] == pytest.approx(1 - 128 / (2 * 8 * 13))
    assert "38 % of the rows in phase 1 are padding" in command(main, arguments).out


def test_the_table_fits_a_narrow_terminal(command, monkeypatch):
    arguments = f"{PAPER} --no-memory --microbatch-size 128"
    wide = command(main, f"{arguments} --wide").out.splitlines()[:6]
    for columns in (60, 80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        out = command(main, arguments).out
        lines = out.splitlines()[:6]
        assert max(map(len, lines)) <= columns
        left_out = set(wide[0].split("  ")) - set(lines[0].split("  "))
        assert ("--wide shows all" in out) == (columns < 200) == bool(left_out)
        for name in ("phase", "steps", "batch", "lr"):
            assert name in lines[0].split()


def test_many_sizes_draw_a_warning():
    config = TrainConfig(batch_schedule="100 to 1000 over 90% in 20", epochs=50)
    plan = config.plan(5000)
    notes = plan_notes(config, plan, Layouts())
    # 20 that are planned, and the last batch, which is partial.
    assert any("each of 21 sizes of a batch" in note for note in notes)
    split = dataclasses.replace(config, microbatch_size=100, accumulation="split")
    notes = plan_notes(split, plan, Layouts(100))
    assert "3 programs to compile." in notes and not any("warning: each" in n for n in notes)


def test_memory_grows_with_the_rows_and_not_with_the_micro_batches(command):
    schedule = "--batch-schedule 32 x2 every 1ep --epochs 3"
    with jax_events() as events:
        outcome = command(main, f"{schedule} --microbatch-size None --json")
    assert events != []
    rows = json.loads(outcome.out)["rows"]
    small, middle, large = (row["memory_bytes"] for row in rows)
    assert [row["memory_is_interpolated"] for row in rows] == [False, True, False]
    assert 3 * middle == pytest.approx(2 * small + large, rel=1e-6)
    # The line is not far from the truth.
    updates, layout = configured_updates(TrainConfig()), Layouts().of(64)
    assert middle == pytest.approx(updates.compiled([layout])[layout].num_bytes, rel=0.1)
    # Parameters and momentum in float32, at the least.
    assert small > 2 * 4 * 9930
    split = "--batch-schedule 32 x2 every 1ep --epochs 2 --microbatch-size 32 --json"
    rows = json.loads(command(main, split).out)["rows"]
    assert [row["num_microbatches"] for row in rows] == [1, 2]
    assert rows[1]["memory_bytes"] < 1.5 * rows[0]["memory_bytes"]


def test_without_memory_nothing_is_compiled(command):
    with jax_events() as events:
        assert command(main, "--no-memory").code == 0
    assert events == []


@contextlib.contextmanager
def jax_events():
    """The names of what JAX traces and compiles meanwhile."""
    events = []

    def listen(name, seconds, **_):
        if "compile" in name or "trace" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


MEASURED = "--batch-schedule 32 x2 every 1ep max 64 --epochs 2 --devices 1 --microbatch-size None"


def test_measured_updates_are_told_in_the_table_and_in_json(command, monkeypatch):
    monkeypatch.setattr(repeated_timing, "_FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(plan_costs, "_BUDGET_SECONDS", 1.0)
    monkeypatch.setattr(microbatch_comparison, "_BUDGET_SECONDS", 4.0)
    content = json.loads(command(main, f"{MEASURED} --measure --json").out)
    prediction, rows = content["prediction"], content["rows"]
    compared = content["microbatches"]
    assert {row["microbatch_size"] for row in compared["rows"]} == {8, 32, 64}
    fastest = min(compared["rows"], key=lambda row: row["update_seconds"])
    assert compared["best"] == fastest["microbatch_size"]
    line = UpdateCost(prediction["overhead_seconds"], prediction["example_seconds"])

    def all_seconds(row, num_samples):
        whole, rest = divmod(num_samples, row["batch_size"])
        share = line.update_seconds(rest) / line.update_seconds(row["batch_size"]) if rest else 0
        return (whole + share) * row["update_seconds"]

    for row in rows:
        assert row["update_is_measured"] and row["update_seconds"] > 0
        assert row["update_spread"] >= 0
        assert row["phase_seconds"] == pytest.approx(all_seconds(row, row["num_samples"]))
        pace = row["batch_size"] / row["update_seconds"]
        assert row["examples_per_second"] == pytest.approx(pace)
    assert prediction["total_seconds"] == pytest.approx(sum(r["phase_seconds"] for r in rows))
    fixed = all_seconds(rows[0], 2 * 1442)
    assert prediction["speedup"] == pytest.approx(fixed / prediction["total_seconds"])
    assert Prediction.from_dict(prediction).speedup == prediction["speedup"]
    text = "\n".join(content["notes"])
    assert "times as long. Compilation, evaluation" in text and "An update takes about" in text


def test_columns_and_notes_of_costs(command, monkeypatch):
    timings = {32: Timing(0.5, 0.01), 128: Timing(0.8, 0.0042)}
    monkeypatch.setattr(plan_costs, "measured_timings", lambda *_: timings)
    compared = MicrobatchComparison(128, {128: Timing(0.8, 0.0), 8: Timing(1.5, 0.02)})
    monkeypatch.setattr(plan_costs, "compare_microbatches", lambda *_: compared)
    arguments = "--batch-schedule 32 x2 every 1ep --epochs 3 --devices 1 --measure"
    narrow = command(main, arguments).out.splitlines()
    assert max(map(len, narrow[:4])) <= 80
    assert narrow[0].endswith("update  spread  phase time  speed-up")
    outcome = command(main, f"{arguments} --wide")
    header, *lines = outcome.out.splitlines()
    assert header.endswith("memory  update  spread  examples/s  phase time  speed-up")
    assert lines[0].split()[-6:-4] == ["±1.0", "%"]
    updates = [-(-1442 // 32), -(-(2884 - 46 * 32) // 64)]
    assert lines[0].split()[-4:] == ["64", f"{updates[0] * 0.5:.3g}", "s", "1.00"]
    # T(64) = 0.4 + 0.1 * 64 / 32
    assert lines[1].split()[-5:] == ["s", "~107", f"~{updates[1] * 0.6:.3g}", "s", "~1.67"]
    assert "~ in times: from the fit" in outcome.out
    assert "Timed until repeated updates agreed, within 1.0 %." in outcome.out
    assert "90 % of the limit of 320 examples/s at batch 1,15" in outcome.out
    assert "Each doubling that is planned gains 5 % or more." in outcome.out
    assert (
        "Best micro-batch at batch 128: 128 (an update takes 0.8 s; 8: 1.5 s; within 2.0 %)."
        in outcome.out
    )


def test_a_suggested_schedule_ends_where_growth_stops_paying(command, monkeypatch):
    rates = {32: 100, 64: 150, 128: 155, 256: 160}
    timings = {size: Timing(size / rate, 0.001) for size, rate in rates.items()}
    monkeypatch.setattr(plan_costs, "measured_timings", lambda *_: timings)
    arguments = "--devices 1 --suggest --max-batch 256 --seed 3 --epochs 10"
    lines = command(main, arguments).out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["batch", "32", "64", "128", "256"]
    assert lines[2].split()[-6:] == ["s", "±0.1", "%", "150", "+50", "%"]
    text = "32 x2 every 20% max 64"
    assert lines[5:] == [
        "Above 64 no doubling that was tried gains 5 % or more.",
        f"Suggested: {text}",
        f"python -m adabatch_jax.train --batch-schedule '{text}' --epochs 10 --seed 3",
    ]
    content = json.loads(command(main, f"{arguments} --json").out)
    assert content["batch_schedule"] == text
    assert [row["examples_per_second"] for row in content["rows"]] == pytest.approx(
        list(rates.values())
    )
    timings[64] = Timing(64 / 150, 0.5)
    lines = command(main, arguments).out.splitlines()
    assert len(lines) == 6 and lines[5].startswith("This machine is too busy to tell: ")
    content = json.loads(command(main, f"{arguments} --json").out)
    assert content["batch_schedule"] is None and 64 in content["could_end_at"]


SEVERAL = "--batch-schedule 32 x2 every 1ep max 128 --epochs 3"


def test_several_numbers_of_devices(command):
    content = json.loads(command(main, f"{SEVERAL} --devices 1,4,48 --json").out)
    assert content["num_devices"] == [1, 4, 48] and content["measured"] is None
    rows = content["rows"]
    assert [row["legal_devices"] for row in rows] == [[1, 4], [1, 4, 48], [1, 4, 48]]
    for row in rows:
        for on in row["by_devices"]:
            count, batch = on["num_devices"], row["batch_size"]
            assert on["rows_per_device"] == -(-batch // count)
            assert on["padding_share"] == pytest.approx(1 - batch / (count * -(-batch // count)))
            assert on["is_legal"] == (count <= batch) and on["predicted_efficiency"] is None
    cut = json.loads(command(main, f"{SEVERAL} --devices 2,16 --microbatch-size 8 --json").out)
    on = [on for row in cut["rows"] for on in row["by_devices"]]
    # Eight of sixteen devices have no example of any micro-batch.
    assert [(o["rows_per_device"], o["is_legal"]) for o in on] == [
        (16, True), (4, False), (32, True), (8, False), (64, True), (16, False),
    ]  # fmt: skip


def test_the_table_of_several_numbers_of_devices_fits(command, monkeypatch):
    out = command(main, f"{SEVERAL} --devices 1,4,48").out
    assert "predicted" not in out.splitlines()[0] and "--measure" in out
    timings = {1: Timing(0.001, 0.0), 8: Timing(0.002, 0.0), 128: Timing(0.0160004, 0.0)}
    monkeypatch.setattr(plan_costs, "measured_timings", lambda *_: timings)
    counts = ",".join(str(2**k) for k in range(15))
    arguments = f"{SEVERAL} --devices {counts} --measure"
    lines = command(main, arguments).out.splitlines()
    assert lines[0].split()[-4:] == ["predicted", "efficiency", "predicted", "update"]
    table = [line for line in lines if line[:1] in " p0123456789" and "updates for" not in line]
    assert len(table) == 1 + 6 + 7 + 8 and max(map(len, table)) <= 80
    assert any("Measured on one cpu device" in line for line in lines)
    (network,) = (line for line in lines if line.startswith("All-reduce of"))
    assert "8 devices per host, links of 450 GB/s and 3 us" in network
    slow = command(main, f"{arguments} --link-bandwidth 25GB/s --json").out
    content = json.loads(slow)
    assert content["network"]["link_bandwidth"] == 25e9
    on = content["rows"][2]["by_devices"]
    assert on[0]["predicted_efficiency"]["all_hidden"] == pytest.approx(1.0)
    assert on[4]["predicted_efficiency"]["compute_seconds"] == 0.002  # 128 on 16
    num_bytes = content["measured"]["gradient_bytes"]
    expected = 2 * 7 / 8 * num_bytes / 25e9 + 14 * 3e-6 + num_bytes / 8 / 50e9 + 2 * 15e-6
    assert on[4]["predicted_efficiency"]["all_reduce_seconds"] == pytest.approx(expected)


def test_rows_are_measured_on_one_device(command, monkeypatch):
    monkeypatch.setattr(repeated_timing, "_FEWEST_SECONDS", 0.0)
    monkeypatch.setattr(plan_costs, "_BUDGET_SECONDS", 1.0)
    arguments = "--batch-schedule 32 --epochs 1 --devices 1,8,32 --measure --json"
    content = json.loads(command(main, arguments).out)
    measured = content["measured"]
    assert [timing["rows"] for timing in measured["timings"]] == [1, 4, 32]
    on = content["rows"][0]["by_devices"]
    assert all(0 < o["predicted_efficiency"]["none_hidden"] <= 1 for o in on)
    seconds = {t["rows"]: t["update_seconds"] for t in measured["timings"]}
    assert [o["predicted_efficiency"]["compute_seconds"] for o in on] == [
        seconds[32], seconds[4], seconds[1],
    ]  # fmt: skip


def test_command_arguments_give_the_configuration_back():
    config = TrainConfig(
        batch_schedule="32 x2 every 4ep max 64",
        microbatch_size=None,
        epochs=2.5,
        weight_decay=1.23456789e-4,
        shard_params=True,
        data=DataSettings(flip=True, train_split="train[:90%]"),
    )
    words = shlex.split(command_arguments(config))
    assert parse_arguments(Options, words, "plan", "")[1] == config


def test_nothing_is_written(command, tmp_path):
    assert command(main, "--workdir run --no-memory").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--divisible-by 48", "32 … phase 1 … sample 0 … 48"),
        ("--batch-schedule 100 --divisible-by 8", "100 … 8 … 96 and 104"),
        ("--max-batch 64", "--max-batch: … --suggest"),
        ("--suggest --measure", "--suggest … --measure"),
        ("--suggest --max-batch 8", "--max-batch: … 32 … 8"),
        (
            "--device-memory 1.5MB --batch-schedule 8, 1ep: 64 --epochs 2 --microbatch-size None",
            "batch 64 (micro-batch 64) … 2,",
        ),
        (
            "--device-memory 100kB --batch-schedule 8 --microbatch-size None",
            "8 (micro-batch 8) … 100,000 … microbatch_size",
        ),
        ("--device-memory 100kB --batch-schedule 8", "micro-batch 1 … device_memory"),
        ("--devices 0", "--devices: … 0"),
        ("--devices 513", "--devices: 513 … 512"),
        ("--devices 513,600", "--devices: 513 … 512"),
        ("--devices 1,x", "--devices: '1,x' … 1,4,16"),
        ("--devices 1,2 --suggest", "--suggest … --devices … 1,2"),
        ("--devices 1,2 --measure --link-bandwidth 25", "--link-bandwidth: '25' … 50GB/s"),
        ("--devices 1,2 --measure --link-bandwidth 25Gb/s", "--link-bandwidth: … 400Gbit/s"),
        ("--devices 1,2 --measure --host-latency 5", "--host-latency: '5' … 5us"),
        ("--devices 1,2 --host-latency 5us", "--host-... … --measure"),
        ("--num-examples 0", "`num_examples` … 0"),
        ("--lr 0.1 x", "lr: … '0.1 x' … 'x' … 5"),
        ("--lr 0.1, 9ep: 0.01, 3ep: 0.1", "'0.1, 9ep: 0.01, 3ep: 0.1' … 3ep … 4,326 … 12,978"),
        ("--dataset imagenet2012 --model resnet20_cifar --batch-schedule 256", "--data.image-size"),
        ("--model no_such_net", "'no_such_net'"),
    ],
)
def test_mistakes(refused, arguments, text):
    refused(main, arguments, text)
