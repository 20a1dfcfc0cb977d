"""`python -m adabatch_jax.plan`: the table, its JSON, and mistakes."""

import json

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.plan import main
from adabatch_jax.plan_memory import update_bytes
from adabatch_jax.plan_table import plan_notes, plan_rows

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
    outcome = command(main, f"{PAPER} --no-memory --remainder drop")
    assert outcome.code == 0 and outcome.err == ""
    header, *lines = outcome.out.splitlines()
    for word in ("phase", "steps", "samples", "epoch", "batch", "per device", "lr/batch"):
        assert word in header
    assert lines[1].split()[:7] == ["1", "7,800", "3,900", "1,000,000", "1,000,000", "20.00", "256"]
    assert "15,080 updates" in outcome.out and "would be 39,000" in outcome.out
    assert "43,840 positions are dropped" in outcome.out


def test_devices_micro_batches_and_padding(command):
    arguments = f"{PAPER} --devices 8 --microbatch-size 100 --no-memory"
    rows = json.loads(command(main, f"{arguments} --json").out)["rows"]
    assert [row["num_microbatches"] for row in rows] == [2, 3, 6, 11, 21]
    assert {row["rows_per_device"] for row in rows} == {13}
    assert rows[0]["padding_share"] == pytest.approx(1 - 128 / (2 * 8 * 13))
    assert "38 % of the rows in phase 0 are padding" in command(main, arguments).out


def test_many_sizes_draw_a_warning():
    config = TrainConfig(batch_schedule="100 to 1000 over 90% in 20", epochs=50)
    plan = config.plan(5000)
    assert any("20 batch sizes" in note for note in plan_notes(plan, plan_rows(config, plan, 1)))


def test_memory_grows_with_the_rows_and_not_with_the_micro_batches(command):
    schedule = "--batch-schedule 64 x4 every 1ep --epochs 2"
    whole = json.loads(command(main, f"{schedule} --json").out)["rows"]
    small, large = (row["memory_bytes"] for row in whole)
    assert 2 * small < large < 6 * small
    split = json.loads(command(main, f"{schedule} --microbatch-size 64 --json").out)["rows"]
    assert split[1]["memory_bytes"] < 1.5 * split[0]["memory_bytes"]
    config = TrainConfig(batch_schedule="64", epochs=1)
    (row,) = plan_rows(config, config.plan(1442), 1)
    # Parameters and momentum in float32, at the least.
    assert update_bytes(config, row) > 2 * 4 * 9930


def test_nothing_is_written(command, tmp_path):
    assert command(main, "--workdir run --no-memory").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--divisible-by 48", "batch size 32 of phase 0 (from sample 0) is not divisible by 48"),
        ("--batch-schedule 100 --divisible-by 8", "the nearest legal sizes are 96 and 104"),
        ("--devices 0", "--devices: must be at least 1, got 0"),
        ("--num-examples 0", "`num_examples` must be at least 1, got 0"),
        ("--lr 0.1 x", "lr: can't read the learning rate '0.1 x' at 'x' (character 5)"),
        ("--lr 0.1, 9ep: 0.01, 3ep: 0.1", "must increase, but 3ep is at sample"),
        ("--dataset imagenet2012 --model resnet20_cifar --batch-schedule 256", "--data.image-size"),
        ("--model no_such_net", "there is no model 'no_such_net'"),
    ],
)
def test_mistakes(refused, arguments, text):
    refused(main, arguments, text)
