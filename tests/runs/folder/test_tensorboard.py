"""TensorBoard events are an extra: without them there is one warning, and all else goes on."""

import errno
import os
import sys
from contextlib import closing

import pytest

from adabatch_jax.runs.folder.metrics_files import MetricsWriter, read_metrics


def _without_the_package(directory, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    return r"the package tensorboardX isn't installed"


def _a_file_in_the_way(directory, monkeypatch):
    (directory / "tensorboard").write_text("")
    return "File exists"


def _disk_full_later(directory, monkeypatch):
    from tensorboardX.event_file_writer import EventsWriter

    original, calls = EventsWriter.write_event, []

    def write_event(self, event):
        calls.append(event)
        if len(calls) > 3:  # version, start and the first row
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, event)

    monkeypatch.setattr(EventsWriter, "write_event", write_event)
    return "No space left on device"


@pytest.mark.parametrize("fault", [_without_the_package, _a_file_in_the_way, _disk_full_later])
def test_one_warning_and_all_rows(fault, tmp_path, monkeypatch, capsys):
    reason = fault(tmp_path, monkeypatch)
    with closing(MetricsWriter(tmp_path)) as metrics:
        for step in (10, 20, 30):
            metrics.write({"step": step, "train_loss": 0.5})
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith("warning: there are no TensorBoard events in ") and reason in err
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 4
