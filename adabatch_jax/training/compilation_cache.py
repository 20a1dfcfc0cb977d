"""Compiled programs on disk, so that a run that is started again doesn't compile again."""

import contextlib
import glob
import hashlib
import os
import platform
import warnings
from pathlib import Path

from adabatch_jax.data.datasets.prepared_folders import user_folder

# In a folder that is shared with other programs the entries that they wrote, which have no digest,
# are neither read nor removed: the names of ours end differently.
_VERIFIED = "-sha256"


def default_folder() -> Path:
    """A folder of this kind of processor in `adabatch_jax/compiled` of the user's cache folder.

    The cache folder is `$XDG_CACHE_HOME`, else `~/.cache`. Machines that share it may have other
    instructions, and what was compiled for one could crash on another.
    """
    return user_folder() / "compiled" / _processor()


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
    settings of JAX's cache. Where the folder can't be made, or where JAX is another one whose
    entries can't be verified, nothing is kept.
    """
    import jax

    # A program that can't be read or kept is compiled.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    if not _verify_entries():
        jax.config.update("jax_enable_compilation_cache", False)
        return
    # XLA's own files beside the entries, of which kernels were fast on a GPU, have no digest.
    if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
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


def _verify_entries() -> bool:
    """Lets JAX verify entries before it uses them; returns whether it does.

    JAX runs what it reads. What zlib packed has a checksum; what zstd packed, which JAX prefers
    where Python has it, has none, and a flipped bit there makes another program. JAX has no place
    for a cache of one's own, so its class is replaced where it looks for it.
    """
    try:
        from jax._src import compilation_cache as of_jax
        from jax.experimental.compilation_cache.compilation_cache import reset_cache

        if not issubclass(of_jax.LRUCache, _Verifying):
            of_jax.LRUCache = type("LRUCache", (_Verifying, of_jax.LRUCache), {})
            reset_cache()  # it may have made one already
        made = of_jax.get_file_cache(os.curdir)[0]
        return isinstance(getattr(made, "_base_cache", made), _Verifying)
    except (ImportError, AttributeError, TypeError, OSError, RuntimeError):
        return False


class _Verifying:
    """Goes before JAX's cache on disk: each entry begins with a digest of its key and the rest."""

    def get(self, key: str) -> bytes | None:
        """An entry as it was put; None where there is none, or it was changed and is now deleted.

        JAX writes entries in place, and never one that is there: a kill or a full disk tears them.
        """
        name = key + _VERIFIED
        entry = super().get(name)
        if entry is None:
            return None
        value = entry[hashlib.sha256().digest_size :]
        if entry == _digest(key, value) + value:
            return value
        with contextlib.suppress(OSError):
            for path in self.path.glob(f"{glob.escape(name)}-*"):
                path.unlink()
        return None

    def put(self, key: str, value: bytes) -> None:
        """Adds an entry."""
        super().put(key + _VERIFIED, _digest(key, value) + value)


def _digest(key: str, value: bytes) -> bytes:
    """Also of the key: an entry under another one's name is another program."""
    return hashlib.sha256(key.encode() + b"\0" + value).digest()
