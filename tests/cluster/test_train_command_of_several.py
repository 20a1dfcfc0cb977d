"""The command in several processes: what each says, and what they leave in the folder."""

import shutil

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.data.sources import ArraySource
from adabatch_jax.report import main as report
from adabatch_jax.runs.configured_run import opened_data
from tests.cluster.groups import Group

SHORT = ["--epochs", 1, "--batch-schedule", "64, 12st: 128", "--log-every", "4st"]


@pytest.fixture
def train(tmp_path):
    def train(*further, count=2, **kwargs):
        command = ["-m", "adabatch_jax.train", "--workdir", tmp_path / "run", *SHORT, *further]
        with Group(tmp_path / "output", command, count, seconds=200, **kwargs) as group:
            return group.ended()

    return train


@pytest.mark.parametrize(
    "num_processes, given, is_in_memory",
    [(1, "streaming", True), (2, "auto", True), (2, "streaming", False)],
)
def test_where_several_stream_each_reads_its_own_rows_only(num_processes, given, is_in_memory):
    data = opened_data(TrainConfig(input=given), num_processes)
    for source in (data.train, *data.evals.values()):
        assert isinstance(source, ArraySource) is is_in_memory


@pytest.mark.cluster
def test_a_run_is_stopped_goes_on_and_is_left_alone_when_it_is_finished(train, tmp_path):
    run = tmp_path / "run"
    first, second = train(variables={1: {"ADABATCH_FAULT": "step.end:3:sigterm"}})
    assert (first.code, second.code) == (143, 143), (first.text, second.text)
    assert "stopped by SIGTERM after update" in first.text
    assert "the same command goes on" in first.text
    assert "stopped by" not in second.text

    first, second = train()
    assert (first.code, second.code) == (0, 0), (first.text, second.text)
    assert "done: test accuracy" in first.text and "done" not in second.text
    logs = sorted(path.name for path in (run / "logs").iterdir())
    assert logs == ["process-0000.log", "process-0001.log"]
    for name in logs:
        assert "resuming after update" in (run / "logs" / name).read_text()
    assert len(list(run.rglob("events.*"))) <= 2, "one for each start: the first process's"

    # Both find it finished, and don't fight over the report.
    (run / "report.html").unlink()
    first, second = train()
    assert (first.code, second.code) == (0, 0), (first.text, second.text)
    assert "finished already: test accuracy" in first.text
    assert "finished" not in second.text
    assert (run / "report.html").exists()
    assert report([str(run), "--out", str(tmp_path / "again.html")]) == 0

    # The same command of one process finds it finished too.
    shutil.rmtree(run / "logs")
    [alone] = train(count=1)
    assert alone.code == 0 and "finished already" in alone.text


@pytest.mark.cluster
def test_a_setting_of_one_alone_ends_both(train, tmp_path):
    """Also one whose folder is no other: it was named."""
    for one in train(own={1: ["--lr", "0.2"]}):
        assert one.code == 2, one.text
        assert "error: process 1 has 0.2 for lr, and process 0 has " in one.text
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.cluster
def test_an_error_of_one_before_training_ends_both_by_its_sentence(train):
    for one in train(own={1: ["--dataset", "mnits"]}):
        assert one.code == 2, one.text
        assert "mnits" in one.text
