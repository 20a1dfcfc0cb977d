"""The commands and code of README and the rooms' pages, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pages import PAGES, README, ROOT, anchors_of, blocks_of, commands_of, files_of

TEXTS = {page: page.read_text() for page in PAGES}
BASH = list(dict.fromkeys(line for text in TEXTS.values() for line in commands_of(text)))
PYTHON = blocks_of(TEXTS[README])
FROM_NOTHING = [line for line in BASH if line.startswith("python3 -m venv")]
INSIDE = [line for line in BASH if line not in FROM_NOTHING]
# What takes long on two cores is run like this: what is in a line, and what is put in its place. The
# first updates have to do, of whole batches: the rest of one would be a program of its own. What is
# prepared of own images isn't left among the user's datasets.
SHORTER = {
    r".*fashion_mnist_resnet20.*": r"\g<0> --epochs 0.5 --data.train-split train[:1024] "
    "--data.test-split test[:100]",
    r"--epochs [12]0 (--workdir)": r"--epochs 2 \1",
    r"--workdir runs/(gpus|mine)": r"\g<0> --epochs 1",
    r"--duration 2Mtok": "--duration 100Ktok",
    r"--name mine": r"\g<0> --data-dir datasets",
    r"(reproduce .*)--(seeds \d|tune-lr)": r"\1--seeds 1 --epochs 0.03 --arms fixed_large",
}


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
    write_photos(folder / "photos")
    words = np.random.default_rng(0).choice("in the beginning god created".split(), 9_000)
    for name in ("corpus.txt", "kjv.txt"):
        (folder / name).write_text(" ".join(words))
    for text in TEXTS.values():
        for name, code in files_of(text).items():
            (folder / name).write_text(code)
    return folder


def write_photos(folder):
    """Pictures of three classes, in two sizes."""
    rng = np.random.default_rng(0)
    for n in range(120):
        (folder / "rgb"[n % 3]).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (40, 32 + n % 2, 3), np.uint8)
        pixels[..., n % 3] += 100
        Image.fromarray(pixels).save(folder / "rgb"[n % 3] / f"{n}.png")


def test_the_readme_has_its_commands():
    assert len(FROM_NOTHING) == 2
    assert FROM_NOTHING[0].endswith(".venv/bin/python -m adabatch_jax.train")
    assert FROM_NOTHING[1].endswith(".venv/bin/python -m pytest")
    assert {re.search(r"-m \w+\.(\w+)", line)[1] for line in INSIDE} == {
        "train", "plan", "report", "predict", "sample", "export", "prepare", "reproduce", "doctor",
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
    (one,) = re.findall(r"`python (-m pytest -n0 [^`]+)`", TEXTS[README])
    done = run(f"{sys.executable} {one} --collect-only -q", checkout)
    assert done.returncode == 0 and "::test_" in done.stdout, done.stdout


def short(line):
    """The line as it is run here, by this interpreter."""
    for pattern, replacement in SHORTER.items():
        line = re.sub(pattern, replacement, line, count=1)
    return re.sub(r"\bpython -m\b", f"{sys.executable} -m", line)


def run_what_it_needs(text, checkout, lines=INSIDE):
    """Trains the runs that a text names and another process may not have trained here."""
    for folder in dict.fromkeys(re.findall(r"(?<!--workdir )\bruns/\w+\b(?!\.)", text)):
        if not (checkout / folder).exists():
            before = next(line for line in lines if f"--workdir {folder}" in line)
            run(short(before), checkout)


# Timing repeats until it is sure, and studies and ResNets train; run these with -m slow.
SLOW = (
    "--measure", "--suggest", "--stop-at-phase", "--local-processes", "fashion_mnist_resnet20",
    "experiments.reproduce", "CUDA_VISIBLE_DEVICES", "train --dataset text:corpus", "sample runs/corpus",
    "--workdir runs/longer",
)  # fmt: skip


def marked(line):
    marks = [pytest.mark.slow] if any(part in line for part in SLOW) else []
    return pytest.param(line, marks=marks)


@pytest.mark.parametrize("line", [marked(line) for line in INSIDE])
def test_commands_inside_the_environment(checkout, line):
    assert re.match(r"(\w+=\S+ )?python -m (adabatch_jax\.|experiments\.reproduce )", line)
    if "fashion_mnist" in line and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist, which isn't installed")
    run_what_it_needs(line, checkout)
    done = run(short(line), checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "page", [page for page in PAGES[1:] if page != ROOT / "adabatch_jax" / "README.md"], ids=str
)
def test_the_code_of_a_room(checkout, page):
    files = files_of(TEXTS[page]).values()
    code = "\n".join(block for block in blocks_of(TEXTS[page]) if block not in files)
    if code:
        run_what_it_needs(code, checkout)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`]*`", "", TEXTS[page])):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), target
            assert not anchor or anchor in anchors_of(there.read_text()), target


def test_every_page_is_found_from_the_readme():
    linked = {(README.parent / t).resolve() for t in re.findall(r"\]\(([^)#]+)", TEXTS[README])}
    assert linked >= set(PAGES[1:])


def test_the_readme_is_read_in_a_minute():
    assert len(TEXTS[README].splitlines()) < 250


@pytest.mark.slow
def test_the_default_run_from_nothing(tmp_path):
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "x"], cwd=tmp_path, input=archive.stdout, check=True)
    done = run(FROM_NOTHING[0], tmp_path, PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "done: test accuracy 9" in done.stdout
