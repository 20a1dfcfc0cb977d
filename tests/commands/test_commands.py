"""`python -m adabatch_jax` and `adabatch`: one front door to the commands."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import adabatch_jax
from adabatch_jax import __main__ as front

PACKAGE = Path(adabatch_jax.__file__).parent


def test_every_command_is_listed(capsys):
    files = {path.stem: ast.parse(path.read_text()).body for path in PACKAGE.glob("*.py")}
    functions = {
        name: {node.name for node in body if isinstance(node, ast.FunctionDef)}
        for name, body in files.items()
    }
    with_main = {name for name, names in functions.items() if "main" in names}
    assert set(front.COMMANDS) == with_main - {"__main__"}
    assert front.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in front.COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_a_command_that_is_none_gets_one_sentence(capsys):
    assert front.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: there is no command trian; did you mean 'train'?\n"


def test_the_script_is_the_front_door():
    scripts = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {front.PROGRAM: "adabatch_jax.__main__:main"}


@pytest.mark.parametrize(
    ("arguments", "code", "begin"),
    [
        (["plan", "--no-memory", "--epochs", "1"], 0, "phase  "),
        (["plan", "--bs", "64"], 2, ""),
        (["report", "no-such-folder"], 2, ""),
    ],
)
def test_a_command_does_what_its_module_does(tmp_path, arguments, code, begin):
    done = [
        subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True)
        for words in (
            ["adabatch_jax", *arguments],
            [f"adabatch_jax.{arguments[0]}", *arguments[1:]],
        )
    ]
    assert [process.returncode for process in done] == [code, code]
    assert done[0].stderr == done[1].stderr
    assert done[0].stdout.startswith(begin) and done[1].stdout.startswith(begin)


COMPLETE = """
source /dev/stdin <<'SCRIPT'
{script}
SCRIPT
COMP_WORDS=({words}); COMP_CWORD=$(({number} - 1)); _adabatch; echo "${{COMPREPLY[*]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["adabatch", "tr"], "train"),
        (["adabatch", "train", "--batch-sch"], "--batch-schedule"),
        (["adabatch", "train", "--optimizer", "''"], "sgd adamw muon"),
        (["adabatch", "plan", "--seed", "3", "--data.cr"], "--data.crop-padding"),
        (["adabatch", "report", "--ou"], "--out"),
        (["adabatch", "report", "runs/"], ""),  # the shell's own: names of files
    ],
)
def test_bash_completes(capsys, words, completed):
    assert front.main(["completion"]) == 0
    script = capsys.readouterr().out
    program = COMPLETE.format(script=script, words=" ".join(words), number=len(words))
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (completed, "")
