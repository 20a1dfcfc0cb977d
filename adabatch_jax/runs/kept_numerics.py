"""What decides the bits of a run, from one process to the next: kept, told, or refused."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.runs.checkpoints.verifying import Damaged, committed_steps, read_run
from adabatch_jax.runs.folder.folder_reading import CHECKPOINTS
from adabatch_jax.runs.kept_layout import setting_changes
from adabatch_jax.system.environment import THREAD_VARIABLES, usable_cores, xla_threads
from adabatch_jax.system.errors import RestoreError, StorageError
from adabatch_jax.training.numerics import MEANING


def keep_threads(workdir: Path, cpu_devices: int | None = None) -> str | None:
    """Lets XLA take as many threads of a CPU as the run in a folder was begun with.

    They give the same bits on any number of cores, at the same speed on fewer. It has to be called
    before JAX has its devices, and leaves the user's own choice as it is.

    Returns:
      A note for the user, or None.
    """
    if any(name in os.environ for name in THREAD_VARIABLES):
        return None
    threads, least = _threads_before(workdir / CHECKPOINTS), cpu_devices or 1
    if threads is None or threads < least or threads == max(xla_threads(), least):
        return None
    os.environ[THREAD_VARIABLES[0]] = str(threads)
    cores = usable_cores()
    return (
        f"note: the run keeps the {threads} threads that it was begun with, for the same bits; "
        f"{THREAD_VARIABLES[0]}={cores} takes one for each core here"
    )


def _threads_before(directory: Path) -> int | None:
    """What the newest checkpoint that can be read says; the run is verified later."""
    try:
        for step in reversed(committed_steps(directory)):
            with contextlib.suppress(Damaged):
                return read_run(directory / str(step)).get("numerics", {}).get("threads")
    except StorageError:
        pass  # it is told when the run's folder is opened
    return None


def check_meaning(saved: Mapping[str, Any], now: Mapping[str, Any], workdir: Path) -> None:
    """Raises a RestoreError where a setting of JAX would give the numbers another meaning.

    >>> check_meaning({"jax_enable_x64": False}, {"jax_enable_x64": True}, Path("runs/x"))
    Traceback (most recent call last):
    adabatch_jax.system.errors.RestoreError: the run in runs/x has jax_enable_x64=False, not True...
    """
    changes = numeric_changes(saved, now, 0)
    differing = [change["setting"] for change in changes if change["setting"] in MEANING]
    if not differing:
        return
    listed = " and ".join(f"{name}={saved[name]!r}, not {now[name]!r}" for name in differing)
    updates = " and ".join(f"jax.config.update({name!r}, {saved[name]!r})" for name in differing)
    raise RestoreError(
        f"the run in {workdir} has {listed}, which decides types and random numbers; go on after "
        f"{updates}, or use another workdir."
    )


def numeric_changes(
    saved: Mapping[str, Any], now: Mapping[str, Any], step: int
) -> list[dict[str, Any]]:
    """What decides bits and differs; what another JAX or machine doesn't know can't be compared."""
    return setting_changes("numerics", saved, now, step)


def changes_text(changes: list[dict[str, Any]]) -> str:
    """Such changes, for people, in one line.

    >>> changes_text(numeric_changes({"XLA_FLAGS": ["--a=1"]}, {"XLA_FLAGS": []}, step=7))
    'from update 7 on results may be rounded differently: XLA_FLAGS --a=1 -> none'
    """
    listed = []
    for change in changes:
        before, now = change["from"], change["to"]
        if isinstance(before, list) and isinstance(now, list):
            common = set(before) & set(now)
            before, now = (
                [word for word in words if word not in common] for words in (before, now)
            )
        listed.append(f"{change['setting']} {_text(before)} -> {_text(now)}")
    step = changes[0]["step"]
    return f"from update {step:,} on results may be rounded differently: {', '.join(listed)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(value) or "none"
    return "none" if value is None else str(value)
