"""Type checkers see every public name, take a right program, and refuse each mistake."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import adabatch_jax as ab

ROOT = Path(__file__).parents[2]
STUB = ROOT / "adabatch_jax" / "__init__.pyi"
RIGHT, WRONG = (Path(__file__).parent / f"{name}_training.py" for name in ("own", "wrong"))


def test_the_stub_has_the_names_that_are_loaded():
    body = ast.parse(STUB.read_text()).body
    imported = {
        node.module: tuple(alias.name for alias in node.names)
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module != "adabatch_jax"
    }
    assert imported == ab._MODULES
    (names,) = [node.value for node in body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(names) == ab.__all__


def test_every_name_is_there_and_no_other():
    for name in ab.__all__:
        thing = getattr(ab, name)
        home = thing.__name__ if inspect.ismodule(thing) else thing.__module__
        assert home.startswith("adabatch_jax.")
    assert set(ab.__all__) <= set(dir(ab))
    with pytest.raises(AttributeError, match="no_such_name"):
        ab.no_such_name  # noqa: B018


def test_the_version_has_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", ab.__version__)
    assert "version =" not in (ROOT / "pyproject.toml").read_text().partition("[tool")[0]


def refused_by_mypy(*files):
    pytest.importorskip("mypy", reason="needs the package mypy, which isn't installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent"]
    options = ["--disable-error-code=import-untyped", f"--cache-dir={os.devnull}"]
    return refused_by([*command, *options, *files], r"^(\S+):(\d+): error")


def refused_by_pyright(*files):
    pytest.importorskip("pyright", reason="needs the package pyright, which isn't installed")
    if shutil.which("node") is None:
        pytest.skip("needs node, which pyright runs on, and which isn't installed")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    return refused_by([*command, *files], r"^ *(\S+):(\d+):\d+ - error")


def refused_by(command, pattern):
    """The lines that a checker refuses, as (file, line)."""
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = (re.match(pattern, line) for line in done.stdout.splitlines())
    return {(Path(line[1]).name, int(line[2])) for line in lines if line}


@pytest.mark.parametrize("refused", [refused_by_mypy, refused_by_pyright])
def test_a_right_program_is_taken_and_each_mistake_refused(refused, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(ROOT))
    lines = WRONG.read_text().splitlines()
    expected = {(WRONG.name, n) for n, line in enumerate(lines, 1) if line.endswith("# wrong")}
    assert refused(RIGHT, WRONG) == expected
