"""The README's commands and code, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BASH = [
    line
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FROM_NOTHING = [line for line in BASH if line.startswith("python3 -m venv")]
INSIDE = [line for line in BASH if line not in FROM_NOTHING]
# Minutes on two cores; here their first updates have to do, four of 128 or two and one of 256:
# whole batches, for the rest of one would be a program of its own.
LONG = {line for line in INSIDE if "fashion_mnist_resnet20" in line}


def run(line, folder, **environment):
    return subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like a checkout, so that nothing is left in the real one."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name[0] != "." and path.name not in ("runs", "reproductions"):
            (folder / path.name).symlink_to(path)
    return folder


def test_the_readme_has_its_commands():
    assert len(FROM_NOTHING) == 2
    assert FROM_NOTHING[0].endswith(".venv/bin/python -m adabatch_jax.train")
    assert FROM_NOTHING[1].endswith(".venv/bin/python -m pytest")
    assert {shlex.split(line)[2].rpartition(".")[2] for line in INSIDE} == {
        "train", "plan", "report", "prepare", "reproduce", "doctor",
    }  # fmt: skip


def test_the_default_run(checkout):
    line = FROM_NOTHING[0].rpartition("&&")[2].strip()
    done = run(line.replace(".venv/bin/python", sys.executable), checkout)
    assert done.returncode == 0, done.stderr
    assert "done: test accuracy 9" in done.stdout and done.stderr == ""
    (folder,) = (checkout / "runs").iterdir()
    assert f"run folder runs/{folder.name}" in done.stdout


def test_the_test_command_collects(checkout):
    line = FROM_NOTHING[1].rpartition("&&")[2].strip().replace(".venv/bin/python", sys.executable)
    done = run(f"{line} --collect-only -q tests/test_readme.py", checkout)
    assert done.returncode == 0 and "test_the_test_command_collects" in done.stdout, done.stdout


@pytest.mark.parametrize("line", INSIDE)
def test_commands_inside_the_environment(checkout, line):
    assert line.startswith(("python -m adabatch_jax.", "python -m experiments.reproduce "))
    if "fashion_mnist" in line and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist, which isn't installed")
    line = line.replace("python", sys.executable, 1)
    if any(line.endswith(long.partition("python")[2]) for long in LONG):
        line += " --epochs 0.5 --data.train-split train[:1024] --data.test-split test[:100]"
    for folder in re.findall(r"(?<!--workdir )\bruns/\w+\b(?!\.)", line):
        if not (checkout / folder).exists():  # another process runs the command before
            before = next(other for other in INSIDE if f"--workdir {folder}" in other)
            run(before.replace("python", sys.executable, 1), checkout)
    if "reproduce" in line:
        line = re.sub("--seeds [35]", "--seeds 1 --epochs 0.03 --arms fixed_large", line)
    done = run(line, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_the_code(checkout):
    script = "\n".join(PYTHON)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=checkout, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.strip().splitlines()
    assert first.startswith("(25, 50, 100, 200) loss ")
    assert float(first.split()[-1]) < 1e-3 and float(second) < 1e-3


def test_the_code_needs_jax_numpy_and_optax_only(checkout):
    blocked = (
        "import importlib.abc, sys\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('flax', 'orbax', 'tensorflow_datasets',\n"
        "            'rich', 'matplotlib', 'tensorboardX', 'sklearn', 'cv2', 'tensorflow'):\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked + PYTHON[0]], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    missing = blocked + "import adabatch_jax as ab\nab.tfds_source('digits')"
    done = subprocess.run(
        [sys.executable, "-c", missing], cwd=checkout, capture_output=True, text=True
    )
    assert "pip install" in done.stderr.splitlines()[-1]


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_default_run_from_nothing(tmp_path):
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "x"], cwd=tmp_path, input=archive.stdout, check=True)
    done = run(FROM_NOTHING[0], tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "done: test accuracy 9" in done.stdout
