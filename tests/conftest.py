"""Eight virtual CPU devices for every test, and no silent broadcasting between ranks."""

import os
import tempfile
from pathlib import Path

# The tests compile the same programs again and again, also in the processes that they start and
# in those that share the tests out.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="adabatch_jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Those processes find the package wherever they are started, installed or not.
_PATHS = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_PATHS)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# On a GPU two programs that should give the same bits do so only with one choice of kernels.
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0")

import jax
import pytest

from adabatch_jax.system import fault_points

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def faults(monkeypatch):
    """`faults("eval.mid:3:sigterm")`: what goes wrong from now on, counted anew at each call."""

    def arrange(text: str) -> None:
        fault_points._counts.clear()
        monkeypatch.setenv(fault_points.VARIABLE, text)

    return arrange
