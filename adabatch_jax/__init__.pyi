# The public names as type checkers and editors see them; __init__.py loads them when used.

from adabatch_jax import cluster as cluster
from adabatch_jax import models as models
from adabatch_jax.config.settings import Keep, Layout, Operation
from adabatch_jax.data.augmentation import example_keys
from adabatch_jax.data.batch_indices import batch_indices
from adabatch_jax.data.batches import batches
from adabatch_jax.data.epoch_order import epoch_order, example_indices
from adabatch_jax.data.example_digest import ExamplesDigest
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.rebatching import Rebatched, rebatch
from adabatch_jax.data.row_layout import host_rows
from adabatch_jax.data.sources import array_source
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.data.tokens.token_source import token_source
from adabatch_jax.runs.fit import FitResult, fit
from adabatch_jax.runs.loaded_run import LoadedRun, load_run
from adabatch_jax.schedules.batch_size_schedules import (
    Schedule,
    constant,
    exponential_growth,
    linear_ramp,
    piecewise_constant,
)
from adabatch_jax.schedules.dialect_writing import write_schedule
from adabatch_jax.schedules.durations import Duration, parse_duration
from adabatch_jax.schedules.free_schedules import sampled
from adabatch_jax.schedules.growth_with_decay import growth_from_decay, seesaw
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.learning_rate_text import LearningRate, parse_learning_rate
from adabatch_jax.schedules.phases import Phase, Step
from adabatch_jax.schedules.plan import BatchPlan, make_plan
from adabatch_jax.schedules.recipes.published import recipes
from adabatch_jax.schedules.schedule_text import joined, parse_schedule
from adabatch_jax.schedules.step_schedules import (
    accumulation_schedule,
    batch_size_schedule,
    half_life_in_samples,
)
from adabatch_jax.system.errors import (
    AdabatchError,
    DivergedError,
    ExampleError,
    RestoreError,
    StorageError,
    UsageError,
)
from adabatch_jax.system.stop_requests import Interruption
from adabatch_jax.training.adam import coupled_adamw, scale_by_adam
from adabatch_jax.training.compiling_ahead import CompiledAhead, compile_ahead
from adabatch_jax.training.evaluation import evaluate
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.padding_check import check_padding
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import TrainStep, make_train_step

__all__ = [
    "AdabatchError", "BatchPlan", "CompiledAhead", "DivergedError", "Duration", "ExampleError",
    "ExamplesDigest", "FitResult", "Interruption", "Keep", "Layout", "LearningRate", "LoadedRun",
    "Operation", "Phase", "Rebatched", "RestoreError", "Schedule", "Step", "StorageError",
    "TrainState", "TrainStep", "UsageError",
    "accumulation_schedule", "array_source", "batch_indices", "batch_size_schedule", "batches",
    "check_padding", "cluster", "compile_ahead", "constant", "coupled_adamw", "coupled_learning_rate",
    "data_mesh", "epoch_order", "evaluate", "example_indices", "example_keys", "exponential_growth",
    "fit", "growth_from_decay", "half_life_in_samples", "host_rows", "joined", "linear_ramp",
    "load_run", "make_plan", "make_train_step", "models", "parse_duration", "parse_learning_rate",
    "parse_schedule", "piecewise_constant", "rebatch", "recipes", "sampled", "scale_by_adam",
    "seesaw", "tfds_source", "token_source", "weighted_mean", "write_schedule",
]  # fmt: skip
__version__: str
