"""The package as it is installed: what its extras list, and a wheel in an empty environment."""

import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def test_requirements_are_those_of_training_and_testing():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [*PROJECT["dependencies"], *EXTRAS["train"], *EXTRAS["test"]]
    assert sorted(line for line in lines if line[0] != "#") == sorted(wanted)


def test_each_extra_that_is_named_exists():
    named = set()
    for path in [*PAGES, *ROOT.rglob("adabatch_jax/**/*.py")]:
        for extras in re.findall(
            r"(?:adabatch_jax|\.whl|[\"' ]\.)\[([a-z0-9,]+)\]", path.read_text()
        ):
            named |= set(extras.split(","))
    assert {"train", "cuda13", "wandb", "prepare"} <= named <= EXTRAS.keys()
    jax_extras = metadata.metadata("jax").get_all("Provides-Extra")
    assert {"cuda12", "cuda13", "tpu"} <= {*jax_extras}


def run(*command, cwd, **environment):
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files that are in a checkout, without a network."""
    pytest.importorskip("setuptools", "77", "needs the package setuptools, version 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("adabatch_jax", "README.md", "LICENSE", "pyproject.toml"):
        run("cp", "-r", ROOT / name, folder, cwd=folder)
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", "dist"]
    path = os.environ.get("PYTHONPATH", "")
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=folder, PYTHONPATH=path)
    (path,) = (folder / "dist").iterdir()
    return path


def test_a_wheel_in_an_empty_environment(wheel, tmp_path):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "adabatch_jax"
    files = {str(p.relative_to(ROOT)) for e in ("py", "md") for p in package.rglob(f"*.{e}")}
    assert names >= files | {"adabatch_jax/py.typed", "adabatch_jax/__init__.pyi"}
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"adabatch_jax"}
    venv.create(tmp_path / "env", with_pip=False)
    python, command = (tmp_path / "env" / "bin" / name for name in ("python", "adabatch"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert "train" in run(command, cwd=tmp_path)  # lists the commands, without jax
    packages = next(Path(env) for env in sys.path if (Path(env) / "jax").is_dir())
    where = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
    )
    (Path(where.strip()) / "dependencies.pth").write_text(f"{packages}\n")
    table = run(command, "plan", "--batch-schedule", "32 x2 every 4ep max 512", "--json",
                "--no-memory", cwd=tmp_path, JAX_PLATFORMS="cpu")  # fmt: skip
    assert '"num_steps": 351' in table
    file = run(python, "-c", "import adabatch_jax as a; print(a.__file__)", cwd=tmp_path)
    assert file.startswith(str(tmp_path))
