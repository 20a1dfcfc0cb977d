"""Weights & Biases: one run there, each step once. Its own files are read back, without a network."""

import json
import struct
import sys
import time

import pytest

from adabatch_jax.config.settings import Operation
from adabatch_jax.schedules.plan import make_plan
from tests.runs import small_run

PLAN = make_plan(4, small_run.N, "14st")
OPTIONS = {
    "log_every": "1st", "checkpoint_every": "4st", "eval_fn": None, "eval_source": None,
    "operation": Operation(trackers=["wandb"]), "identity": {"lr": 0.05},
}  # fmt: skip


def contents(path):
    """The records of one of W&B's files: a header of 7 bytes, then LevelDB's format of a log."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def records(workdir):
    """What W&B keeps of a run: the id at each start, all its rows, and how each start ended."""
    from wandb.proto.wandb_internal_pb2 import Record

    ids, rows, exit_codes = [], [], []
    for path in sorted((workdir / "wandb").glob("offline-run-*/*.wandb")):
        for record in map(Record.FromString, contents(path)):
            if record.HasField("run"):
                ids.append(record.run.run_id)
            if record.HasField("history"):
                items = {(i.key or i.nested_key[0]): i.value_json for i in record.history.item}
                rows.append({key: json.loads(value) for key, value in items.items()})
            if record.HasField("exit"):
                exit_codes.append(record.exit.exit_code)
    return ids, rows, exit_codes


def test_offline_over_restarts(tmp_path, faults, monkeypatch):
    pytest.importorskip("wandb", reason="needs the package wandb, which isn't installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for update in (2, 7, 6):  # before the first checkpoint; 7; 10
        faults(f"step.end:{update}:raise")
        with pytest.raises(Exception, match="step.end"):
            small_run.train(PLAN, tmp_path, **OPTIONS)
    faults("")
    result = small_run.train(PLAN, tmp_path, **OPTIONS)
    until = time.monotonic() + 30
    while len(records(tmp_path)[2]) < 4 and time.monotonic() < until:
        time.sleep(0.1)  # its own process writes
    ids, rows, exit_codes = records(tmp_path)
    assert len(ids) == 4 and len(set(ids)) == 1 and exit_codes == [1, 1, 1, 0]
    assert [row["_step"] for row in rows] == list(range(1, 15))
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in result.history]
    assert "examples_digest" not in rows[0]


def test_without_the_package_a_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert small_run.train(PLAN, tmp_path, **OPTIONS).state.step == 14
    (line,) = capsys.readouterr().err.splitlines()
    assert "the package wandb isn't installed: pip install 'adabatch_jax[wandb]'" in line


def test_without_a_network_a_run_goes_on(tmp_path, monkeypatch, capsys):
    """A stand-in for the package, as far as it is called."""

    class Package:
        class Settings:
            def __init__(self, **_):
                pass

        @staticmethod
        def init(**_):
            raise TimeoutError("Run initialization has timed out after 30.0 sec.")

    monkeypatch.setitem(sys.modules, "wandb", Package)
    assert small_run.train(PLAN, tmp_path, **OPTIONS).state.step == 14
    (line,) = capsys.readouterr().err.splitlines()
    assert "Weights & Biases gets nothing more of this run (Run initialization has timed" in line
