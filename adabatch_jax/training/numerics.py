"""All that decides the bits of a result beside the program and its settings."""

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from adabatch_jax.system.environment import (
    cpu_instructions,
    package_versions,
    rounding_variables,
    xla_threads,
)

if TYPE_CHECKING:
    import jax

MEANING = {
    "jax_enable_x64": False,
    "jax_explicit_x64_dtypes": "warn",
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_high_dynamic_range_gumbel": False,
}
"""JAX's settings that decide what is computed, types and random numbers, as commands have them."""

# With these JAX raises an error where our code leaves a conversion to it, or compiles nothing.
_COMMANDS = MEANING | {"jax_numpy_dtype_promotion": "standard", "jax_disable_jit": False}

# JAX's settings that decide how it is computed. Those of versions that don't have them are left
# out; what only checks, logs, moves or keeps is none of them.
_ROUNDING = (
    "jax_default_matmul_precision", "jax_allow_f16_reductions", "jax_softmax_custom_jvp",
    "jax_accurate_erf_inv", "jax_use_hlo_logistic_lowering", "jax_use_direct_linearize",
    "jax_custom_jvp3", "jax_custom_vjp3", "jax_scan3", "jax_remat3",
    "jax_remat_barrier_no_cotangents", "jax_compiler_enable_remat_pass", "eager_constant_folding",
    "jax_use_simplified_jaxpr_constants", "jax_embedded_constants_max_bytes", "jax_disable_jit",
    "jax_disable_most_optimizations", "jax_optimization_level",
    "jax_exec_time_optimization_effort", "jax_memory_fitting_effort", "jax_memory_fitting_level",
    "jax_use_shardy_partitioner", "jax_cpu_collectives_implementation", "jax_enable_pgle",
    "jax_pgle_profiling_runs", "jax_pgle_aggregation_percentile", "jax_xla_profile_version",
    "jax_threefry_gpu_kernel_lowering", "jax_use_magma", "jax_bcoo_cusparse_lowering",
    "jax_ragged_dot_use_ragged_dot_instruction", "jax_ragged_dot_use_gpu_pallas_triton_lowering",
    "jax_pallas_use_mosaic_gpu",
)  # fmt: skip


def numerics(device: "jax.Device") -> dict[str, Any]:
    """Returns all that decides bits where such devices compute, flat, as JSON values.

    The number of devices is the layout's.
    """
    import jax

    found = {
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "device_kind": device.device_kind,
    }
    if device.platform == "cpu":
        threads = max(xla_threads(), jax.local_device_count("cpu"))
        found |= {"threads": threads, "instructions": cpu_instructions()}
    settings = _settings((*MEANING, *_ROUNDING))
    return found | rounding_variables() | settings | package_versions()


def settle_for_commands() -> list[str]:
    """Sets what a command's numbers mean, whatever the environment says; returns a note of each.

    A command computes what its own settings say: it can be repeated from another shell. How it is
    computed, such as the precision of products, is for its user.
    """
    import jax

    notes = []
    for name, there in _settings(_COMMANDS).items():
        value = _COMMANDS[name]
        if there != value:
            jax.config.update(name, value)
            notes.append(
                f"note: {name} is {there} in this environment and {value} for this command, whose "
                "results it would change"
            )
    return notes


def _settings(names: Iterable[str]) -> dict[str, Any]:
    """Those of JAX's settings that this version has, as JSON values."""
    import jax

    there = jax.config.values
    return {
        name: value.name.lower() if isinstance(value := there[name], enum.Enum) else value
        for name in names
        if name in there
    }
