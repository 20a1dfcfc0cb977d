"""Uninterrupted runs to compare with, each computed once, and folders for those that aren't."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import COMMON, SETTINGS, Run


@pytest.fixture(scope="session")
def oracles(tmp_path_factory) -> Path:
    """A folder that all workers of the session share."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    (folder / "oracles").mkdir(exist_ok=True)
    return folder / "oracles"


@pytest.fixture
def oracle(oracles) -> Callable[[str], Run]:
    """`oracle("carry")`: the finished run with these settings that nothing happened to."""

    def finished(setting: str, further: str = "") -> Run:
        name = "-".join([setting, *further.replace("--", "").split()]).replace("/", "_")
        run = Run(oracles / name, f"{COMMON} {SETTINGS[setting]} {further}")
        with open(oracles / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (run.workdir / "report.html").exists():
                run.go(says="done: ")
        return run

    return finished


@pytest.fixture
def begin(tmp_path) -> Callable[[str], Run]:
    """`begin("carry")`: a run with these settings that has not been started yet."""

    def new(setting: str, further: str = "") -> Run:
        return Run(tmp_path / "run", f"{COMMON} {SETTINGS[setting]} {further}")

    return new


@pytest.fixture
def begun(oracles, tmp_path) -> Run:
    """A run that was stopped after update 30, with some checkpoints before."""
    stored = Run(oracles / "begun", f"{COMMON} {SETTINGS['carry']}")
    if not (stored.workdir / "checkpoints" / "30").exists():
        stored.go("step.end:30:sigterm", code=143)
    shutil.copytree(stored.workdir, tmp_path / "run", symlinks=True)
    return Run(tmp_path / "run", stored.arguments)


@pytest.fixture
def own_cache(tmp_path) -> dict[str, str]:
    """Variables for processes that can't write: what they spoil of a cache is nobody else's."""
    folder = tmp_path / "cache"
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], folder)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder), "PYTHONWARNINGS": "ignore"}
