import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.runs.folder.metrics_files import (
    COLUMNS,
    MetricsPosition,
    MetricsWriter,
    read_metrics,
)
from adabatch_jax.system.errors import RestoreError, StorageError


def training_row(step):
    row = {
        "step": step,
        "samples": 128 * step,
        "epoch": 128 * step / 50_000,
        "phase": 0,
        "batch_size": 128,
        "learning_rate": 0.1 / 3,
        "train_loss": math.exp(-step / 300),
        # Hexadecimal text that may look like a number, in any notation.
        "examples_digest": {50: "00000050", 100: "1234e567", 150: "12345678"}.get(step, "5e+00010"),
    }
    if step % 100 == 0:
        row |= {"test_loss": 0.5 + 1 / step, "test_accuracy": 1 - 1 / step}
    return row


def write_steps(directory, steps, resume_from=None):
    """Returns the positions before the first row and after each."""
    with closing(MetricsWriter(directory, resume_from)) as metrics:
        positions = {0: metrics_end(directory)}
        for step in steps:
            metrics.write(training_row(step))
            positions[step] = metrics_end(directory)
    return positions


def metrics_end(directory):
    return MetricsPosition.after((Path(directory) / "metrics.jsonl").read_bytes())


def contents(directory):
    return [(directory / name).read_bytes() for name in ("metrics.jsonl", "metrics.csv")]


def test_floats_round_trip(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 1e16, float(np.float32(0.1))]
    with closing(MetricsWriter(tmp_path)) as metrics:
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
    with closing(MetricsWriter(tmp_path)) as metrics:
        metrics.write({"step": 1, "train_loss": 2.0})
        metrics.write({"step": 2, "test_top5": 0.5})
        metrics.write({"step": 3, "train_loss": 1.0})
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["test_top5"] for row in rows] == ["", "0.5", ""]
    assert [row["train_loss"] for row in rows] == ["2.0", "", "1.0"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_non_finite_values_stay_strict_json(tmp_path, value):
    with closing(MetricsWriter(tmp_path)) as metrics:
        metrics.write({"step": 1, "train_loss": value})

    def refuse(constant):
        raise AssertionError(constant)

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "train_loss": None}
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["train_loss"])
    assert "nan" in (tmp_path / "metrics.csv").read_text()


def test_numpy_numbers_are_written_as_numbers(tmp_path):
    with closing(MetricsWriter(tmp_path)) as metrics:
        metrics.write({"step": np.int64(3), "train_loss": np.float32(0.5)})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 3, "train_loss": 0.5}]


@pytest.mark.parametrize("torn", ["", '{"step": 450, "sam', '{"step": 450, "samples": 57600}'])
@pytest.mark.parametrize("checkpoint_step", [0, 50, 200, 400])
def test_resumed_files_equal_an_uninterrupted_runs(tmp_path, checkpoint_step, torn):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    write_steps(whole, range(50, 601, 50))
    positions = write_steps(resumed, range(50, 401, 50))
    with open(resumed / "metrics.jsonl", "a") as file:
        file.write(torn)
    with open(resumed / "metrics.csv", "a") as file:
        file.write("450,57")
    write_steps(resumed, range(checkpoint_step + 50, 601, 50), positions[checkpoint_step])
    assert contents(resumed) == contents(whole)
    assert {path.name for path in resumed.iterdir()} == {path.name for path in whole.iterdir()}


def test_a_position_is_where_the_file_ends_and_survives_json(tmp_path):
    rows = [training_row(step) for step in (50, 100)]
    with closing(MetricsWriter(tmp_path)) as metrics:
        positions = [metrics.position()]
        for row in rows:
            metrics.write(row)
            positions.append(metrics.position())
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for number, position in enumerate(positions):
        assert position == MetricsPosition.after(b"".join(lines[:number]))
        saved = json.loads(json.dumps(dataclasses.asdict(position)))
        assert MetricsPosition(**saved) == position
    with closing(MetricsWriter(tmp_path, positions[1])) as metrics:
        assert metrics.position() == positions[1]
        metrics.write(rows[1])
        assert metrics.position() == positions[2]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: truncate(path, 0),
    "first byte": lambda path: flip(path, 0),
    "a digit": lambda path: flip(path, path.read_bytes().index(b"6400")),
    "a line's end": lambda path: flip(path, path.read_bytes().index(b"\n")),
    "cut short": lambda path: truncate(path, 300),
    "a hole": lambda path: path.write_bytes(path.read_bytes().replace(b"200", b"\0\0\0")),
    "not text": lambda path: path.write_bytes(path.read_bytes().replace(b"200", b"\xff\xfe\xfd")),
    "a quote": lambda path: path.write_bytes(path.read_bytes().replace(b"150", b'"50', 1)),
}

ROWS = [
    {"step": 50, "train_loss": math.nan, "test_b": 1, "train_a": 1.0, "examples_digest": "1e+05"},
    {"step": 100, "samples": 6400, "train_loss": 1e-07, "examples_digest": "12345678"},
    {"step": 150, "phase": 0, "train_a": -0.0, "test_c": 1e16, "test_b": -3, "epoch": 2.0},
    {"step": 200, "train_loss": math.inf, "test_c": math.nan, "examples_digest": "0"},
    {"step": 250, "train_a": 'a, "quoted" text\nof two lines', "train_loss": 5e-324},
    {"step": 300, "train_loss": 0.1, "test_d": 3},
]


def write_rows(directory, rows, resume_from=None):
    with closing(MetricsWriter(directory, resume_from)) as metrics:
        positions = [metrics_end(directory)]
        for row in rows:
            metrics.write(row)
            positions.append(metrics_end(directory))
    return positions


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_rows_are_refused_and_nothing_is_changed(tmp_path, damage):
    positions = write_rows(tmp_path, ROWS)
    damage(tmp_path / "metrics.jsonl")
    before = {path: path.read_bytes() for path in tmp_path.glob("metrics.*")}
    wanted = r"damaged or missing in .*metrics\.jsonl; .* --allow-change rows"
    with pytest.raises(RestoreError, match=wanted):
        MetricsWriter(tmp_path, positions[5])
    assert {path: path.read_bytes() for path in tmp_path.glob("metrics.*")} == before
    # Before the first row there was nothing to lose.
    assert write_rows(tmp_path, ROWS, positions[0]) == positions


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_table_is_written_anew(tmp_path, damage):
    positions = write_rows(tmp_path, ROWS)
    whole = contents(tmp_path)
    damage(tmp_path / "metrics.csv")
    assert write_rows(tmp_path, ROWS[5:], positions[5]) == positions[5:]
    assert contents(tmp_path) == whole


def test_what_can_not_be_read_is_not_called_lost(tmp_path):
    positions = write_rows(tmp_path, ROWS)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(
        StorageError, match=r"cannot read .*metrics\.jsonl: Is a directory; move it away"
    ):
        MetricsWriter(tmp_path, positions[5])


def test_killed_in_the_middle_of_a_line(tmp_path):
    """Half of the line has reached the file, and is gone after a resume."""
    whole = write_steps(tmp_path / "whole", [50, 100, 150])
    code = (
        "import pathlib, sys; from tests.runs.folder.test_metrics_files import write_steps\n"
        "write_steps(pathlib.Path(sys.argv[1]), [50, 100])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "killed")],
        env={**os.environ, "ADABATCH_FAULT": "metrics.mid_line:2"},
    )
    written = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    position = whole[50]
    assert position.num_bytes < len(written) < whole[100].num_bytes
    assert [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl")] == [50]
    write_steps(tmp_path / "killed", [100, 150], position)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_resume_keeps_nan_and_further_columns_as_they_were(tmp_path):
    rows = [
        {"step": 1, "train_loss": math.inf, "test_top5": 0.5},
        {"step": 2, "train_loss": 1.0},
        {"step": 3, "train_loss": math.nan, "test_top5": 0.6},
    ]
    write_rows(tmp_path / "whole", rows)
    positions = write_rows(tmp_path / "resumed", rows)
    write_rows(tmp_path / "resumed", rows[2:], positions[2])
    assert contents(tmp_path / "whole") == contents(tmp_path / "resumed")


def test_fresh_run_starts_empty(tmp_path):
    write_steps(tmp_path, [50, 100, 150])
    write_steps(tmp_path, [60])
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [60]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_each_row_is_on_disk_when_written(tmp_path):
    with closing(MetricsWriter(tmp_path)) as metrics:
        metrics.write(training_row(50))
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(StorageError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        read_metrics(path)
    for row in ("[2]", '{"step": "3"}', '{"step": null}', '{"loss": 1}'):
        path.write_text(f'{{"step": 1}}\n{row}\n')
        with pytest.raises(StorageError, match="line 2 .* not a row with a step"):
            read_metrics(path)
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(StorageError, match="line 1 .* not JSON"):
        read_metrics(path)


def test_a_planted_link_leads_nowhere(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("metrics.jsonl", "metrics.csv"):
        (run / f".{name}.tmp").symlink_to(precious)
    with closing(MetricsWriter(run)) as metrics:
        metrics.write(training_row(50))
    assert precious.read_text() == "kept"
    assert not any(path.is_symlink() for path in run.iterdir())


def test_disk_errors_are_one_sentence(tmp_path):
    (tmp_path / "run").write_text("a file where the run directory should be")
    with pytest.raises(StorageError, match=r"cannot write .*run: "):
        MetricsWriter(tmp_path / "run")
    with pytest.raises(StorageError, match=r"cannot read .*missing\.jsonl: No such file"):
        read_metrics(tmp_path / "missing.jsonl")


def test_full_disk_is_a_storage_error_and_leaves_the_rows_before_it(tmp_path):
    resource = pytest.importorskip("resource")
    with closing(MetricsWriter(tmp_path)) as metrics:
        metrics.write(training_row(50))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = (tmp_path / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        try:
            with pytest.raises(
                StorageError, match=r"cannot write .*/metrics\.jsonl: File too large"
            ):
                metrics.write(training_row(100))
            assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [50]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
