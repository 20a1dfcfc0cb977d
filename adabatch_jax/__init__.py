"""Batch sizes that change while training, in JAX (AdaBatch, arXiv:1712.02029).

A schedule, such as `exponential_growth`, meets a dataset's size and a duration in `make_plan`.
From the plan come the learning rate (`coupled_learning_rate`) and the batches (`batches`, or
`rebatch` of a loader that is there already) of a loop of one's own; `fit` is the loop as a call.

>>> import adabatch_jax as ab
>>> plan = ab.make_plan("128 x2 every 20ep max 2048", num_examples=50_000, duration="100ep")
>>> lr = ab.coupled_learning_rate(plan, ab.parse_learning_rate("0.1 x0.375 every 20ep"))
>>> [(phase.batch_size, round(float(lr(phase.start_step)), 4)) for phase in plan.phases]
[(128, 0.1), (256, 0.075), (512, 0.0562), (1024, 0.0422), (2048, 0.0316)]
"""

import importlib
import sys

if sys.version_info < (3, 11):
    _SENTENCE = "adabatch_jax needs Python 3.11 or newer, this is %d.%d." % sys.version_info[:2]
    if sys.argv[:1] == ["-m"]:  # one of the command lines: no traceback
        sys.stderr.write("error: " + _SENTENCE + "\n")
        raise SystemExit(2)
    raise ImportError(_SENTENCE)

__version__ = "0.1.0"

# Loaded when they are first used, so that command lines answer at once.
_MODULES = {
    "adabatch_jax.schedules.durations": ("Duration", "parse_duration"),
    "adabatch_jax.schedules.batch_size_schedules": (
        "Schedule",
        "constant",
        "exponential_growth",
        "linear_ramp",
        "piecewise_constant",
    ),
    "adabatch_jax.schedules.growth_with_decay": ("growth_from_decay", "seesaw"),
    "adabatch_jax.schedules.free_schedules": ("sampled",),
    "adabatch_jax.schedules.schedule_text": ("joined", "parse_schedule"),
    "adabatch_jax.schedules.phases": ("Phase", "Step"),
    "adabatch_jax.schedules.step_schedules": (
        "accumulation_schedule",
        "batch_size_schedule",
        "half_life_in_samples",
    ),
    "adabatch_jax.schedules.plan": ("BatchPlan", "make_plan"),
    "adabatch_jax.schedules.dialect_writing": ("write_schedule",),
    "adabatch_jax.schedules.recipes.published": ("recipes",),
    "adabatch_jax.schedules.learning_rate_text": ("LearningRate", "parse_learning_rate"),
    "adabatch_jax.schedules.learning_rate_schedule": ("coupled_learning_rate",),
    "adabatch_jax.config.settings": ("Keep", "Layout", "Operation"),
    "adabatch_jax.data.epoch_order": ("epoch_order", "example_indices"),
    "adabatch_jax.data.row_layout": ("host_rows",),
    "adabatch_jax.data.batches": ("batches",),
    "adabatch_jax.data.batch_indices": ("batch_indices",),
    "adabatch_jax.data.rebatching": ("Rebatched", "rebatch"),
    "adabatch_jax.data.example_digest": ("ExamplesDigest",),
    "adabatch_jax.data.sources": ("array_source",),
    "adabatch_jax.data.tfds_images": ("tfds_source",),
    "adabatch_jax.data.tokens.token_source": ("token_source",),
    "adabatch_jax.data.augmentation": ("example_keys",),
    "adabatch_jax.data.mesh": ("data_mesh",),
    "adabatch_jax.training.adam": ("coupled_adamw", "scale_by_adam"),
    "adabatch_jax.training.train_state": ("TrainState",),
    "adabatch_jax.training.loss_functions": ("weighted_mean",),
    "adabatch_jax.training.train_step": ("TrainStep", "make_train_step"),
    "adabatch_jax.training.compiling_ahead": ("CompiledAhead", "compile_ahead"),
    "adabatch_jax.training.padding_check": ("check_padding",),
    "adabatch_jax.training.evaluation": ("evaluate",),
    "adabatch_jax.runs.fit": ("FitResult", "fit"),
    "adabatch_jax.runs.loaded_run": ("LoadedRun", "load_run"),
    "adabatch_jax.system.stop_requests": ("Interruption",),
    "adabatch_jax.system.errors": (
        "AdabatchError",
        "DivergedError",
        "ExampleError",
        "RestoreError",
        "StorageError",
        "UsageError",
    ),
}
_PACKAGES = (
    "cluster",
    "config",
    "data",
    "models",
    "reporting",
    "runs",
    "schedules",
    "system",
    "training",
)
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOMES, "cluster", "models"])
__docformat__ = "google"  # of docstrings, to whom renders them


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from adabatch_jax.system.errors import explain_missing

        raise explain_missing(error) or error from error
    globals()[name] = value
    return value


def __dir__():
    return [*globals(), *__all__]
