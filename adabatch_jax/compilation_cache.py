"""Compiled programs on disk, so that a run that is started again doesn't compile again."""

import os
from pathlib import Path


def default_folder() -> Path:
    """`adabatch_jax/compiled` in the user's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`)."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "adabatch_jax" / "compiled"


def enable(folder: str | os.PathLike | None = None) -> None:
    """Keeps this process's compiled programs in a folder; call it before the first compilation.

    A folder that the user chose (`$JAX_COMPILATION_CACHE_DIR`) stays, and so do the user's other
    settings of JAX's cache. Where the folder can't be made, nothing is kept.

    Args:
      folder: by default `default_folder()`.
    """
    import jax

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
