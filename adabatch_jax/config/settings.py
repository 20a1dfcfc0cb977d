"""The settings of a run, before they are checked; no third-party import."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the examples come from, and how they are augmented."""

    dir: str | None = None
    """Folder of the prepared datasets; none: the user's cache folder."""

    train_split: str | None = None
    """Split to train on, such as train[:90%]; none: the dataset's own."""

    test_split: str | None = None
    """Split to evaluate on; none: the dataset's own."""

    holdout_split: str | None = None
    """Split kept out of the training, such as train[90%:], to choose by; none: no such split."""

    image_size: int | None = None
    """Height and width to resize and crop images to; needed where they differ in size."""

    crop_padding: int = 0
    """Pixels of zeros on each side before a random crop to the original size; 0: no crop."""

    flip: bool = False
    """Whether to flip images left to right at random."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of `TrainConfig`, before they are checked."""

    name: str | None = None
    """Name of the run and of its folder; none: made of dataset and model."""

    dataset: str = "digits"
    """Dataset: digits, fashion_mnist, mnist, cifar10, cifar100, or any labelled images of tfds."""

    model: str = "cnn_digits"
    """Network: cnn_digits, resnet20_cifar, ..."""

    batch_schedule: str = "32 x2 every 4ep max 512"
    """Batch-size schedule, such as "128 x2 every 20ep max 2048" or "128, 20ep: 256"."""

    lr: str = "0.05 x0.375 every 4ep"
    """Learning rate at the reference batch size, such as "0.1 x0.375 every 20ep warmup 5ep"."""

    coupling: str = "linear"
    """How the learning rate follows the batch: none, linear, sqrt, or a power."""

    reference_batch_size: int | None = None
    """Batch size that lr is meant for; none: the schedule's first."""

    optimizer: str = "sgd"
    """Optimizer: sgd or adamw."""

    momentum: float = 0.9
    """Momentum of sgd."""

    weight_decay: float = 5e-4
    """Weight decay: added to the gradient by sgd, decoupled in adamw."""

    epochs: float = 20.0
    """Length of the run in epochs."""

    seed: int = 0
    """Seed of the initial weights, the order of the examples, augmentation and dropout."""

    microbatch_size: int | str | None = "auto"
    """Examples, over all devices, that are computed at a time; none: the whole batch; auto: what
    fits and is fast."""

    accumulation: str = "fused"
    """How micro-batches are computed: fused (in one program per batch size) or split (one per
    call of a program that all batch sizes share)."""

    steps_per_dispatch: int | str = "auto"
    """Updates per call of a program, a number or auto: several where they are short."""

    input: str = "auto"
    """Where the examples live: resident (on the devices), streaming (from the host), or auto."""

    shard_params: bool = False
    """Whether to spread parameters and optimizer state over the devices too (FSDP)."""

    device_memory: str | None = None
    """Memory of each device, such as 16GiB; none: what the device reports."""

    batchnorm_group_size: int | None = None
    """Rows that BatchNorm normalizes together; none: the whole (micro-)batch."""

    batchnorm_reference_size: int | None = None
    """Group size that BatchNorm's running average is meant for: its half-life is then constant
    in examples; none: constant in groups, as in the official code."""

    compute_dtype: str = "float32"
    """Type to compute in: float32 or bfloat16; weights are float32."""

    remainder: str = "carry"
    """At an epoch's end: carry (on into the next), partial (batch), or drop (the rest)."""

    eval_every: str = "1ep"
    """How often to evaluate on the test set; always at the end."""

    eval_batch_size: int = 512
    """Examples per batch of the evaluation; doesn't change its result."""

    checkpoint_every: str = "1ep"
    """How often to save a checkpoint; always at the end."""

    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep."""

    keep_best: str | None = "max test_accuracy"
    """Which checkpoint to keep beside the newest: max or min, and a figure of the evaluation;
    none: none."""

    keep_every: str | None = None
    """How often to keep a checkpoint for good, such as 20ep; none: never."""

    on_nan: str = "stop"
    """Where a loss or gradient isn't finite: stop; skip:N (leave out up to N such updates); or
    rollback (to the newest checkpoint's weights, once per checkpoint)."""

    log_every: str = "10st"
    """How often to write a row of metrics."""

    data: DataSettings = DataSettings()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A hash of settings, in hex.

    >>> settings_digest({"seed": 1, "lr": 0.1}) == settings_digest({"lr": 0.1, "seed": 1})
    True
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
