"""Runs commands in this process, as `python -m` would."""

import dataclasses
import re

import pytest

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
