"""How far a run would scale, by its own times: what they are, and where nothing is said."""

import csv
import json

import pytest

from adabatch_jax.reporting.planning.scaling_efficiency import Network
from adabatch_jax.reporting.predicted_scaling import measured_times, predicted_phases, scaling_csv
from adabatch_jax.reporting.report_pages import run_page
from adabatch_jax.reporting.saved_run import load_run
from adabatch_jax.system.files import read_sealed, write_sealed

UPDATES = (7813, 3906, 1954, 977)


def timed_run(make_run, seconds_each, devices=1, changes=()):
    """Batches of 128 to 1,024, an update of each phase so many seconds."""
    directory = make_run()
    summary = read_sealed(directory / "summary.json")
    taken = [n * each for n, each in zip(UPDATES, seconds_each)]
    decisions = [
        {"kind": "layout", "step": step, "setting": "batch_shards", "from": before, "to": to}
        for step, before, to in changes
    ]
    summary |= {"phase_training_seconds": taken, "decisions": decisions}
    write_sealed(directory / "summary.json", summary)
    environment = json.loads((directory / "environment.json").read_text())
    environment["layout"] = {"batch_shards": devices}
    (directory / "environment.json").write_text(json.dumps(environment))
    return load_run(directory)


SECONDS = (0.1, 0.15, 0.25, 0.4)


def test_times_by_rows_on_each_device(make_run):
    run = timed_run(make_run, SECONDS, devices=4)
    expected = dict(zip((32, 64, 128, 256), SECONDS))
    assert measured_times(run).by_rows == pytest.approx(expected)


def test_devices_that_changed_between_phases_and_in_one(make_run):
    changes = [(7813, 1, 4), (12_000, 4, 8)]  # at the second phase, and inside of the third
    run = timed_run(make_run, SECONDS, devices=8, changes=changes)
    # 128 on one device and 1,024 on eight are 128 rows both.
    assert measured_times(run).by_rows == pytest.approx({128: 0.1, 64: 0.15})


def test_what_is_predicted(make_run):
    run = timed_run(make_run, SECONDS)
    first, *_, last = predicted_phases(run, Network(8, 100e9, 0.0, 10e9, 0.0))
    assert first.batch_size == 256 and list(first.by_devices) == [1, 2]  # not below 128 rows
    assert last.batch_size == 1024 and list(last.by_devices) == [1, 2, 4, 8]
    # 1,024 rows in 0.4 s are the best; 8 devices take 0.1 s for 128 rows each.
    all_reduce = 2 * 7 / 8 * 4 * 272_474 / 100e9
    assert last.by_devices[8].all_hidden == pytest.approx(0.5)
    assert last.by_devices[8].none_hidden == pytest.approx(0.05 / (0.1 + all_reduce))
    rows = list(csv.DictReader(scaling_csv([first, last]).splitlines()))
    assert [row["devices"] for row in rows] == ["1", "2", "1", "2", "4", "8"]
    page = run_page(run)
    assert "Predicted scaling" in page and "Predicted, not measured" in page
    assert "8 devices per host, links of 450 GB/s" in page


def test_nothing_is_said_without_times(make_run):
    run = load_run(make_run())
    assert measured_times(run) is None and predicted_phases(run) == []
    assert "Predicted scaling" not in run_page(run)


def test_a_fixed_batch_says_nothing_of_fewer_rows(make_run):
    run = timed_run(make_run, (0.1, 0.1, 0.1, 0.0), devices=8, changes=[(13_673, 8, 8)])
    assert min(measured_times(run).by_rows) == 16
    unknown = timed_run(lambda: make_run(folder="other"), SECONDS, devices=None)
    assert predicted_phases(unknown) == []
