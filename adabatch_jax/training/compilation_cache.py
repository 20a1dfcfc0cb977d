"""Compiled programs on disk, so that a run that is started again doesn't compile again."""

import hashlib
import os
import platform
import warnings
from pathlib import Path


def default_folder() -> Path:
    """A folder of this kind of processor in `adabatch_jax/compiled` of the user's cache folder.

    The cache folder is `$XDG_CACHE_HOME`, else `~/.cache`. Machines that share it may have other
    instructions, and what was compiled for one could crash on another.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "adabatch_jax" / "compiled" / _processor()


def _processor() -> str:
    """The machine's architecture, and a hash of the instructions that its processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = [platform.processor()]
    known = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def enable(folder: str | os.PathLike | None = None) -> None:
    """Keeps this process's compiled programs in a folder; call it before the first compilation.

    A folder that the user chose (`$JAX_COMPILATION_CACHE_DIR`) stays, and so do the user's other
    settings of JAX's cache. Where the folder can't be made, nothing is kept.
    """
    import jax

    # A program that can't be read or kept is compiled; a kill or a full disk tears an entry, which
    # JAX then reads and complains about at every start.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir is not None:
        return
    folder = default_folder() if folder is None else Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # By default JAX keeps what took a second; a start is made of many shorter ones.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES" not in os.environ:
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
