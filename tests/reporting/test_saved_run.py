import hashlib
import json
import math

import pytest

from adabatch_jax.reporting.saved_run import load_run, run_labels
from adabatch_jax.system.errors import StorageError, UsageError


def test_finished_run(make_run):
    run = load_run(make_run())
    assert run.name == "cifar10-adabatch"
    assert [phase["batch_size"] for phase in run.plan["phases"]] == [128, 256, 512, 1024]
    assert run.final("test_accuracy") == run.summary["test_accuracy"]
    assert run.final("learning_rate") == run.last_row["learning_rate"]
    assert run.environment["packages"]["jax"] == "0.10.2"


def test_unfinished_run_ends_with_what_was_measured_last(make_run):
    rows = [
        {"step": 1, "samples": 128, "train_loss": 2.0, "test_accuracy": 0.5},
        {"step": 2, "samples": 256, "train_loss": None},
    ]
    directory = make_run(rows=rows, finished=False)
    (directory / "environment.json").unlink()
    with open(directory / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "sam')
    run = load_run(directory)
    assert run.summary is None and run.environment == {}
    assert run.final("test_accuracy") == 0.5
    assert math.isnan(run.final("train_loss"))
    assert run.final("test_loss") is None
    assert run.last_row["step"] == 2


def test_run_without_rows(make_run):
    run = load_run(make_run(rows=[]))
    assert run.rows == () and run.last_row == {} and run.final("step") is None


def test_labels_are_as_short_as_they_can_be(make_run):
    first = load_run(make_run("a-1", name="digits"))
    second = load_run(make_run("b-2", name="fashion"))
    third = load_run(make_run("c-3", name="digits"))
    assert run_labels([first, second]) == ["digits", "fashion"]
    assert run_labels([first, third]) == ["a-1", "c-3"]


def test_labels_hold_nothing_that_a_terminal_acts_on(make_run):
    runs = [load_run(make_run("a", name="\x1b[2J")), load_run(make_run("b\x07", name="b"))]
    assert run_labels(runs) == [r"\x1b[2J", "b"]


def test_missing_folder_names_the_nearest(make_run):
    directory = make_run("adabatch-1a2b3c4d")
    wrong = directory.with_name("adabatch-1a2b3c4e")
    with pytest.raises(UsageError, match="'.*'.* '.*3c4d'"):
        load_run(wrong)
    with pytest.raises(UsageError, match="'/no/such/folder'"):
        load_run("/no/such/folder")


def test_folder_that_is_no_run_names_what_is_missing(make_run):
    directory = make_run()
    (directory / "plan.json").unlink()
    with pytest.raises(UsageError, match="plan.json"):
        load_run(directory)
    (directory / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="plan.json and metrics.jsonl"):
        load_run(directory)


def test_folder_of_runs_points_inside(make_run):
    with pytest.raises(UsageError, match="'adabatch-1a2b3c4d'"):
        load_run(make_run().parent)


@pytest.mark.parametrize("content", ['{"name"', "[1]"])
def test_damaged_file_is_named(make_run, content):
    directory = make_run()
    (directory / "config.json").write_text(content)
    with pytest.raises(StorageError, match=r"config\.json"):
        load_run(directory)


def _changed(path, **changes):
    """As if written by another program: also the digest that a summary has is right."""
    content = json.loads(path.read_text()) | changes
    content.pop("digest", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content | {"digest": digest}))


def test_a_summary_that_was_edited_is_not_reported(make_run):
    path = make_run() / "summary.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content, indent=8))
    assert load_run(path.parent).summary["test_accuracy"] == content["test_accuracy"]
    path.write_text(json.dumps(content | {"test_accuracy": 0.99}))
    with pytest.raises(StorageError, match=r"summary\.json is damaged"):
        load_run(path.parent)


@pytest.mark.parametrize(
    ("file", "changes", "match"),
    [
        ("plan.json", {"phases": "<script>"}, r"plan\.json is damaged: it holds no plan"),
        ("plan.json", {"num_examples": "many"}, r"plan\.json is damaged: it holds no plan"),
        ("plan.json", {"phases": [["step"]]}, r"plan\.json is damaged: it holds no plan"),
        ("plan.json", {"num_steps": 10**400}, r"plan\.json is damaged: it holds no plan"),
        ("summary.json", {"total_seconds": 10**400}, r"summary\.json is damaged: total_seconds"),
        ("summary.json", {"train_loss": float("inf")}, r"summary\.json is damaged: train_loss"),
        ("summary.json", {"examples_digest": "\x1b[2J"}, r"damaged: examples_digest is no text"),
        ("summary.json", {"epoch": "<b>"}, r"summary\.json is damaged: epoch is no number but"),
        ("summary.json", {"total_seconds": [1]}, r"summary\.json is damaged: total_seconds is no"),
    ],
)
def test_values_of_another_kind_are_named(make_run, file, changes, match):
    directory = make_run()
    _changed(directory / file, **changes)
    with pytest.raises(StorageError, match=match):
        load_run(directory)


def test_rows_of_another_kind_are_named(make_run):
    row = {"step": 1, "samples": 128, "train_loss": "high", "epoch": 0.1}
    directory = make_run(rows=[row], finished=False)
    with pytest.raises(StorageError, match=r"metrics\.jsonl .*train_loss"):
        load_run(directory)
