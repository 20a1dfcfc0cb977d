"""Every setting of a run, declared once; a new one is added here. No third-party import."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from adabatch_jax.config.declarations import Role, as_in, check, setting, settings
from adabatch_jax.config.value_texts import (
    NanPolicy,
    Score,
    check_folder,
    check_length,
    check_name,
    check_seed,
    num_bytes,
    parse_nan_policy,
    parse_period,
    parse_profiled,
    parse_score,
    seconds,
)  # fmt: skip
from adabatch_jax.schedules.learning_rate_text import coupling_power, parse_learning_rate
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.schedules.strides import REMAINDERS
from adabatch_jax.system.errors import UsageError

NUMBERS, FUTURE, LAYOUT, OPERATION = Role

AUTO = "auto"
"""Left to the program."""


@settings
class Layout:
    """How a run is laid out on its devices: it decides bits, never meaning.

    Raises:
      UsageError: a value that can't work, or two that can't go together.

    >>> Layout(device_memory="2KiB").device_memory
    2048
    """

    microbatch_size: int | str | None = setting(
        AUTO, LAYOUT,
        "Examples, over all devices, that are computed at a time; none: the whole batch; auto: "
        "what fits and is fast.",
        choices=(AUTO,), at_least=1, is_changeable=True,
    )  # fmt: skip
    accumulation: str = setting(
        "fused", LAYOUT,
        "How micro-batches are computed: fused (in one program per batch size) or split (one per "
        "call of a program that all batch sizes share).",
        choices=("fused", "split"),
    )  # fmt: skip
    steps_per_dispatch: int | str = setting(
        AUTO, LAYOUT,
        "Updates per call of a program, a number or auto: several where they are short.",
        choices=(AUTO,), at_least=1,
    )  # fmt: skip
    input: str = setting(
        AUTO, LAYOUT,
        "Where the examples live: resident (on the devices), streaming (from the host), or auto.",
        choices=(AUTO, "resident", "streaming"),
    )  # fmt: skip
    shard_params: bool = setting(
        False, LAYOUT,
        "Whether to spread parameters and optimizer state over the devices too (FSDP).",
    )  # fmt: skip
    device_memory: int | str | None = setting(
        None, LAYOUT,
        "Memory of each device, such as 16GiB; none: what the device reports.",
        read=num_bytes, at_least=1,
    )  # fmt: skip

    def __post_init__(self):
        check(self)
        if self.device_memory is not None:
            object.__setattr__(self, "device_memory", num_bytes(self.device_memory))
        if self.accumulation == "split" and self.microbatch_size in (None, AUTO):
            raise UsageError(
                "accumulation: split computes one micro-batch at a time; give microbatch_size a "
                "number."
            )
        if self.accumulation == "split" and self.steps_per_dispatch not in (1, AUTO):
            raise UsageError(
                "accumulation: split dispatches one micro-batch at a time, so steps_per_dispatch "
                f"must be 1 or auto, got {self.steps_per_dispatch}."
            )


@settings
class Keep:
    """Which checkpoints of a run stay.

    Raises:
      UsageError: `newest` < 1, or a text that can't be read.
    """

    newest: int = setting(3, OPERATION, "How many of the newest checkpoints to keep.", at_least=1)
    best: str | None = setting(
        "max test_accuracy", OPERATION,
        "Which checkpoint to keep beside the newest: max or min, and a figure of the evaluation; "
        "none: none.",
        read=parse_score, has_spaces=True,
    )  # fmt: skip
    every: str | int | None = setting(
        None, OPERATION,
        "How often to keep a checkpoint for good, such as 20ep; none: never.",
        read=parse_period,
    )  # fmt: skip

    def __post_init__(self):
        check(self)

    @property
    def score(self) -> Score | None:
        """What the best is chosen by, if it is kept."""
        return None if self.best is None else parse_score(self.best)


@settings
class Operation:
    """How a run is operated: nothing of its result depends on it as long as nothing goes wrong.

    Raises:
      UsageError: a value that can't work.
    """

    on_nan: str = setting(
        "stop", FUTURE,
        "Where a loss or gradient isn't finite: stop; skip:N (leave out up to N such updates); or "
        "rollback (to the newest checkpoint's weights, once per checkpoint).",
        read=parse_nan_policy,
    )  # fmt: skip
    on_save_error: str = setting(
        "stop", OPERATION,
        "Where a checkpoint can't be written: stop; or warn, and train on until the next one.",
        choices=("stop", "warn"),
    )  # fmt: skip
    interruption: Any = setting(None, OPERATION, "What stops the run.")
    stall_timeout: float | str | None = setting(
        None, OPERATION,
        "The longest that an update, a batch or a checkpoint may take, such as 10m: then all "
        "stacks are written to stalls.log, and the exit code is 42.",
        read=seconds,
    )  # fmt: skip
    profile: str | None = setting(
        None, OPERATION,
        "Updates to trace with JAX's profiler, such as 10:20; the trace goes into the run's "
        "folder.",
        read=parse_profiled,
    )  # fmt: skip
    progress: Any = setting(None, OPERATION, "Where to show how it goes.")

    def __post_init__(self):
        check(self)
        if self.stall_timeout is not None:
            object.__setattr__(self, "stall_timeout", seconds(self.stall_timeout))

    @property
    def nan_policy(self) -> NanPolicy:
        """What `on_nan` says."""
        return parse_nan_policy(self.on_nan)


@settings
class DataSettings:
    """Where the examples come from, and how they are augmented."""

    dir: str | None = setting(
        None, OPERATION,
        "Folder of the prepared datasets; none: the user's cache folder.", read=check_folder,
    )  # fmt: skip
    train_split: str | None = setting(
        None, NUMBERS, "Split to train on, such as train[:90%]; none: the dataset's own."
    )
    test_split: str | None = setting(
        None, NUMBERS, "Split to evaluate on; none: the dataset's own."
    )
    holdout_split: str | None = setting(
        None, NUMBERS,
        "Split kept out of the training, such as train[90%:], to choose by; none: no such split.",
    )  # fmt: skip
    image_size: int | None = setting(
        None, NUMBERS,
        "Height and width to resize and crop images to; needed where they differ in size.",
        at_least=1,
    )  # fmt: skip
    crop_padding: int = setting(
        0, NUMBERS,
        "Pixels of zeros on each side before a random crop to the original size; 0: no crop.",
        at_least=0, is_changeable=True,
    )  # fmt: skip
    flip: bool = setting(
        False, NUMBERS, "Whether to flip images left to right at random.", is_changeable=True
    )

    def __post_init__(self):
        check(self, lambda name: f"data.{name}")


@settings
class Settings:
    """The fields of `TrainConfig`, each checked; what goes together is offered as one."""

    name: str | None = setting(
        None, OPERATION,
        "Name of the run and of its folder; none: made of dataset and model.", read=check_name,
    )  # fmt: skip
    dataset: str = setting(
        "digits", NUMBERS,
        "Dataset: digits, fashion_mnist, mnist, cifar10, cifar100, or any labelled images of tfds.",
    )  # fmt: skip
    model: str = setting("cnn_digits", NUMBERS, "Network: cnn_digits, resnet20_cifar, ...")
    batch_schedule: str = setting(
        "32 x2 every 4ep max 512", FUTURE,
        'Batch-size schedule, such as "128 x2 every 20ep max 2048" or "128, 20ep: 256".',
        read=parse_schedule, is_changeable=True, has_spaces=True,
    )  # fmt: skip
    lr: str = setting(
        "0.05 x0.375 every 4ep", FUTURE,
        'Learning rate at the reference batch size, such as "0.1 x0.375 every 20ep warmup 5ep".',
        read=parse_learning_rate, is_changeable=True, has_spaces=True,
    )  # fmt: skip
    coupling: str = setting(
        "linear", FUTURE,
        "How the learning rate follows the batch: none, linear, sqrt, or a power.",
        read=coupling_power,
    )  # fmt: skip
    reference_batch_size: int | None = setting(
        None, FUTURE,
        "Batch size that lr is meant for; none: the schedule's first.", at_least=1,
    )  # fmt: skip
    optimizer: str = setting("sgd", NUMBERS, "Optimizer: sgd or adamw.", choices=("sgd", "adamw"))
    momentum: float = setting(0.9, NUMBERS, "Momentum of sgd.", at_least=0, is_changeable=True)
    weight_decay: float = setting(
        5e-4, NUMBERS, "Weight decay: added to the gradient by sgd, decoupled in adamw.",
        at_least=0, is_changeable=True,
    )  # fmt: skip
    epochs: float = setting(20.0, FUTURE, "Length of the run in epochs.", read=check_length)
    seed: int = setting(
        0, NUMBERS,
        "Seed of the initial weights, the order of the examples, augmentation and dropout.",
        at_least=0, read=check_seed,
    )  # fmt: skip
    microbatch_size: int | str | None = as_in(Layout, "microbatch_size")
    accumulation: str = as_in(Layout, "accumulation")
    steps_per_dispatch: int | str = as_in(Layout, "steps_per_dispatch")
    input: str = as_in(Layout, "input")
    shard_params: bool = as_in(Layout, "shard_params")
    device_memory: str | None = as_in(Layout, "device_memory")
    batchnorm_group_size: int | None = setting(
        None, NUMBERS,
        "Rows that BatchNorm normalizes together; none: the whole (micro-)batch.",
        at_least=1, is_changeable=True,
    )  # fmt: skip
    batchnorm_reference_size: int | None = setting(
        None, NUMBERS,
        "Group size that BatchNorm's running average is meant for: its half-life is then constant "
        "in examples; none: constant in groups, as in the official code.",
        at_least=1, is_changeable=True,
    )  # fmt: skip
    compute_dtype: str = setting(
        "float32", NUMBERS, "Type to compute in: float32 or bfloat16; weights are float32.",
        choices=("float32", "bfloat16"), is_changeable=True,
    )  # fmt: skip
    remainder: str = setting(
        "carry", NUMBERS,
        "At an epoch's end: carry (on into the next), partial (batch), or drop (the rest).",
        choices=tuple(REMAINDERS),
    )  # fmt: skip
    eval_every: str = setting(
        "1ep", OPERATION, "How often to evaluate on the test set; always at the end.",
        read=parse_period,
    )  # fmt: skip
    eval_batch_size: int = setting(
        512, OPERATION, "Examples per batch of the evaluation; doesn't change its result.",
        at_least=1,
    )  # fmt: skip
    checkpoint_every: str = setting(
        "1ep", OPERATION, "How often to save a checkpoint; always at the end.", read=parse_period
    )
    keep_checkpoints: int = as_in(Keep, "newest")
    keep_best: str | None = as_in(Keep, "best")
    keep_every: str | None = as_in(Keep, "every")
    on_nan: str = as_in(Operation, "on_nan")
    log_every: str = setting(
        "10st", OPERATION, "How often to write a row of metrics.", read=parse_period
    )
    data: DataSettings = DataSettings()

    def __post_init__(self):
        check(self)
        self.layout  # checks what goes together

    @property
    def layout(self) -> Layout:
        """How the run is laid out on its devices."""
        return Layout(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Layout)})

    @property
    def keep(self) -> Keep:
        """Which checkpoints stay."""
        return Keep(self.keep_checkpoints, self.keep_best, self.keep_every)


def settings_digest(content: Mapping[str, Any]) -> str:
    """A hash of settings, in hex.

    >>> settings_digest({"seed": 1, "lr": 0.1}) == settings_digest({"lr": 0.1, "seed": 1})
    True
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
