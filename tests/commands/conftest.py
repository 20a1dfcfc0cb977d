"""Runs commands in this process, as `python -m` would; and a run's folder for the doctor."""

import dataclasses
import json
import re
import shutil

import pytest

from adabatch_jax import doctor as doctor_command
from adabatch_jax.system.environment import THREAD_VARIABLES
from tests.run_folders import CONFIG, PLAN, STEPS, metrics_content, write_checkpoint
from tests.sentences import says


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd, tmp_path, monkeypatch):
    """`command(main, "--flag value ...")` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(THREAD_VARIABLES[0], "")
    monkeypatch.delenv(THREAD_VARIABLES[0])  # a command's own choice ends with the test

    def run(main, arguments):
        capfd.readouterr()
        code = main(arguments.split() if isinstance(arguments, str) else arguments)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def refused(command):
    """`refused(main, arguments, "setting … value", code=2)`: one sentence that names them."""

    def check(main, arguments, text, code=2):
        outcome = command(main, arguments)
        assert outcome.code == code, outcome
        lines = outcome.err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), outcome.err
        assert lines[0][-1] in ".?", outcome.err
        assert re.search(says(text), lines[0]), outcome.err

    return check


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run that was killed after update 30 of 35."""
    monkeypatch.setenv("ADABATCH_DATA_DIR", str(tmp_path / "no datasets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    (folder / "plan.json").write_text(json.dumps(PLAN.to_dict()))
    (folder / "metrics.jsonl").write_bytes(metrics_content(range(0, 31, 5)))
    for step in STEPS:
        write_checkpoint(folder, step)
    return folder


@pytest.fixture
def doctor(command):
    """`doctor(folder)`: the exit code and the findings of the run section, by subject."""

    def ask(folder):
        outcome = command(doctor_command.main, ["--json", str(folder)])
        content = json.loads(outcome.out)
        assert outcome.err == "" and content["exit_code"] == outcome.code
        findings = content["run"]
        codes = [f["exit_code"] for f in content["environment"] + findings if f["exit_code"]]
        assert outcome.code == next(iter(codes), 0)
        return outcome.code, {finding["subject"]: finding for finding in findings}

    return ask


def states(findings):
    return {name: f["state"] for name, f in findings.items() if f["state"] != "ok"}


def without_checkpoints(run):
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
