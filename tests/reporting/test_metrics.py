import csv
import json
import math

import numpy as np
import pytest

from adabatch_jax.errors import StorageError
from adabatch_jax.reporting.metrics import COLUMNS, MetricsWriter, read_metrics


def training_row(step):
    row = {
        "step": step,
        "samples": 128 * step,
        "epoch": 128 * step / 50_000,
        "phase": 0,
        "batch_size": 128,
        "learning_rate": 0.1 / 3,
        "train_loss": math.exp(-step / 300),
        "examples_digest": f"{step:08x}",
    }
    if step % 100 == 0:
        row |= {"test_loss": 0.5 + 1 / step, "test_accuracy": 1 - 1 / step}
    return row


def write_steps(directory, steps, resume_from_step=None):
    with MetricsWriter(directory, resume_from_step) as metrics:
        for step in steps:
            metrics.write(training_row(step))


def tensorboard_scalars(directory):
    """What TensorBoard shows: (tag, step) -> value, purged events left out."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = {}
    for path in sorted((directory / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown[value.tag, event.step] = value.simple_value
    return shown


def test_floats_round_trip(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 1e16, float(np.float32(0.1))]
    with MetricsWriter(tmp_path) as metrics:
        for step, value in enumerate(values):
            metrics.write({"step": step, "train_loss": value})
    assert [row["train_loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == values
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [float(row["train_loss"]) for row in csv.DictReader(file)] == values


def test_csv_has_fixed_columns_and_empty_cells(tmp_path):
    write_steps(tmp_path, [50, 100])
    with open(tmp_path / "metrics.csv", newline="") as file:
        reader = csv.DictReader(file)
        first, second = reader
    assert tuple(reader.fieldnames) == COLUMNS
    assert first["test_accuracy"] == "" and first["elapsed_seconds"] == ""
    assert second["test_accuracy"] == "0.99"


def test_unknown_metrics_get_columns_of_their_own(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"step": 1, "train_loss": 2.0})
        metrics.write({"step": 2, "test_top5": 0.5})
        metrics.write({"step": 3, "train_loss": 1.0})
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test_top5"] for row in rows] == ["", "0.5", ""]
    assert [row["train_loss"] for row in rows] == ["2.0", "", "1.0"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_non_finite_values_stay_strict_json(tmp_path, value):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"step": 1, "train_loss": value})

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "train_loss": None}
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["train_loss"])
    assert "nan" in (tmp_path / "metrics.csv").read_text()


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write({"step": np.int64(3), "train_loss": np.float32(0.5)})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "train_loss": 0.5}]


@pytest.mark.parametrize("torn", ["", '{"step": 450, "sam', '{"step": 450, "samples": 57600}'])
@pytest.mark.parametrize("checkpoint_step", [0, 50, 230, 400])
def test_resumed_files_equal_an_uninterrupted_runs(tmp_path, checkpoint_step, torn):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    write_steps(whole, range(50, 601, 50))
    write_steps(resumed, range(50, 401, 50))
    with open(resumed / "metrics.jsonl", "a") as file:
        file.write(torn)
    with open(resumed / "metrics.csv", "a") as file:
        file.write("450,57")
    remaining = [step for step in range(50, 601, 50) if step > checkpoint_step]
    write_steps(resumed, remaining, resume_from_step=checkpoint_step)
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    assert tensorboard_scalars(resumed) == tensorboard_scalars(whole)
    assert {path.name for path in resumed.iterdir()} == {path.name for path in whole.iterdir()}


def test_resume_keeps_nan_and_further_columns_as_they_were(tmp_path):
    rows = [
        {"step": 1, "train_loss": math.inf, "test_top5": 0.5},
        {"step": 2, "train_loss": 1.0},
        {"step": 3, "train_loss": math.nan, "test_top5": 0.6},
    ]
    for name, resume_from_step in (("whole", None), ("resumed", 2)):
        with MetricsWriter(tmp_path / name) as metrics:
            for row in rows:
                metrics.write(row)
        if resume_from_step is not None:
            with MetricsWriter(tmp_path / name, resume_from_step) as metrics:
                metrics.write(rows[2])
    for name in ("metrics.jsonl", "metrics.csv"):
        contents = {(tmp_path / run / name).read_bytes() for run in ("whole", "resumed")}
        assert len(contents) == 1


def test_fresh_run_starts_empty(tmp_path):
    write_steps(tmp_path, [50, 100, 150])
    write_steps(tmp_path, [60])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [60]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert {step for _, step in tensorboard_scalars(tmp_path)} == {60}


def test_tensorboard_has_every_number(tmp_path):
    write_steps(tmp_path, [100])
    scalars = tensorboard_scalars(tmp_path)
    assert scalars["test_accuracy", 100] == pytest.approx(0.99)
    assert {tag for tag, _ in scalars} == set(training_row(100)) - {"step", "examples_digest"}


def test_each_row_is_on_disk_when_written(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(training_row(50))
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
        assert tensorboard_scalars(tmp_path)


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        read_metrics(path)
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(StorageError, match="line 2 .* not a row with a step"):
        MetricsWriter(tmp_path, resume_from_step=1)


def test_disk_errors_are_one_sentence(tmp_path):
    (tmp_path / "run").write_text("a file where the run directory should be")
    with pytest.raises(StorageError, match=r"cannot write .*run: "):
        MetricsWriter(tmp_path / "run")
    with pytest.raises(StorageError, match=r"cannot read .*missing\.jsonl: No such file"):
        read_metrics(tmp_path / "missing.jsonl")


def test_full_disk_is_a_storage_error_and_leaves_the_rows_before_it(tmp_path):
    resource = pytest.importorskip("resource")
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(training_row(50))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (tmp_path / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        try:
            with pytest.raises(StorageError, match="cannot write .*: File too large"):
                metrics.write(training_row(100))
            assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [50]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
