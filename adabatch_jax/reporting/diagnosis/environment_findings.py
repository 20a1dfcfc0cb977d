"""What a run would find on this machine: versions, devices, room on the disks, datasets."""

import importlib.util
import os
import platform
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from adabatch_jax.data.datasets.prepared_folders import prepared_names, resolve_data_dir
from adabatch_jax.reporting.diagnosis.findings import (
    ENVIRONMENT,
    STORAGE,
    Finding,
    good,
    note,
    of_error,
    problem,
)
from adabatch_jax.system.environment import package_versions
from adabatch_jax.system.errors import EXTRA_PACKAGES, AdabatchError, one_line
from adabatch_jax.system.files import existing_folder, free_bytes
from adabatch_jax.system.quantities import bytes_text
from adabatch_jax.training import compilation_cache

_LITTLE_BYTES = 2**30


def environment_findings(workdir: Path | None, data_dir: str | None) -> Iterator[Finding]:
    """Looks at this machine; None stands for the current folder, and for the datasets' default."""
    yield good("python", platform.python_version(), version=platform.python_version())
    yield from _packages()
    yield _devices()
    yield _disk("current folder" if workdir is None else "run folder", workdir or Path.cwd())
    yield _disk("datasets in", resolve_data_dir(data_dir))
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or compilation_cache.default_folder()
    yield _disk("compiled in", Path(compiled))
    names = prepared_names(data_dir)
    if not names:
        yield good("datasets", "none is prepared; digits is on first use", prepared=[])
    for name in names:
        yield _dataset(name, data_dir)


def _packages() -> Iterator[Finding]:
    versions = package_versions()
    shown = (name for name in versions if name not in ("adabatch_jax", "jaxlib"))
    text = ", ".join(f"{name} {versions[name]}" for name in shown)
    yield good("packages", text, versions=versions)
    missing = sorted(name for name in EXTRA_PACKAGES if importlib.util.find_spec(name) is None)
    if missing:
        yield problem(
            "packages",
            f"training needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not installed: pip install 'adabatch_jax[train]', or -r requirements.txt in a "
            "checkout.",
            ENVIRONMENT,
            missing=missing,
        )


def _devices() -> Finding:
    # A run may be at work on the same accelerator: looking must not take its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import jax

        from adabatch_jax.data.mesh import check_backend
        from adabatch_jax.training.numerics import settle_for_commands

        settle_for_commands()  # what is said here and below is of the command
        check_backend()
        kinds = Counter(device.device_kind for device in jax.devices())
    except AdabatchError as error:
        return of_error("devices", error)
    except Exception as error:  # a broken installation may raise anything
        return problem("devices", f"JAX can't be used ({one_line(error)}).", ENVIRONMENT)
    text = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return good("devices", text, devices=dict(kinds))


def _disk(subject: str, folder: Path) -> Finding:
    folder = folder.absolute()
    try:
        free = free_bytes(folder)
    except AdabatchError as error:
        return of_error(subject, error, path=str(folder))
    text, data = f"{folder}: {bytes_text(free)} free", {"path": str(folder), "free_bytes": free}
    is_writable = os.access(existing_folder(folder), os.W_OK | os.X_OK)
    if not is_writable:
        return problem(subject, f"{text}, but it can't be written.", STORAGE, **data)
    if free < _LITTLE_BYTES:
        return note(subject, f"{text}, which is little.", **data)
    return good(subject, text, **data)


def _dataset(name: str, data_dir: str | None) -> Finding:
    subject = f"dataset {name}"
    try:
        from adabatch_jax.data.tfds_images import check_dataset

        sizes = check_dataset(name, data_dir)
    except AdabatchError as error:
        return of_error(subject, error, dataset=name)
    except Exception as error:  # as above
        return problem(subject, f"it can't be opened ({one_line(error)}).", STORAGE, dataset=name)
    text = ", ".join(f"{split} {count:,}" for split, count in sizes.items())
    return good(subject, text, dataset=name, splits=sizes)
