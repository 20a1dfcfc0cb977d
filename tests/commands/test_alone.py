"""A run needs no network and no reader of what it prints."""

import json
import os
import socket
import sys

import pytest

from adabatch_jax import plan, train

SHORT = "--epochs 1 --batch-schedule 128 --steps-per-dispatch 1"


@pytest.fixture
def no_network(monkeypatch):
    """Whatever asks for a host or connects to one fails, and is noted."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("there is no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    return asked


def test_training_planning_and_reporting_alone(no_network, tmp_path, monkeypatch, capfd):
    workdir = tmp_path / "run"
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setenv("COLUMNS", "20")
    umask = os.umask(0o027)
    try:
        with open(writer, "w") as broken, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", broken)
            assert train.main([*SHORT.split(), "--workdir", str(workdir)]) == 0
    finally:
        os.umask(umask)
    assert json.loads((workdir / "summary.json").read_text())["epoch"] == 1.0
    assert (workdir / "report.html").exists()
    assert capfd.readouterr().err == ""
    for path in [workdir, *workdir.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path
    assert plan.main([*SHORT.split(), "--no-memory"]) == 0
    assert no_network == []
