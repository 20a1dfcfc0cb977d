"""What was found out about files, kept in a file: where it can't be, it is found out again."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adabatch_jax.system.errors import StorageError
from adabatch_jax.system.files import read_sealed, write_sealed


def read_kept(path: Path) -> dict[str, Any] | None:
    """What is kept; None where nothing is, or it can't be read or is damaged.

    >>> read_kept(Path("/nonexistent"))
    """
    with contextlib.suppress(StorageError):
        return read_sealed(path)
    return None


def keep(path: Path, content: Mapping[str, Any]) -> bool:
    """Keeps a JSON object, and makes the folders above it; False where it can't be kept.

    >>> keep(Path("/dev/null/facts.json"), {})
    False
    """
    with contextlib.suppress(OSError, StorageError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, content)
        return True
    return False
