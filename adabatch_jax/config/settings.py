"""Every setting of a run, declared once; a new one is added here."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from adabatch_jax.config.declarations import (
    Role,
    as_in,
    check,
    declarations,
    flattened,
    replaced,
    setting,
    settings,
)  # fmt: skip
from adabatch_jax.config.gpt_settings import GPTSettings
from adabatch_jax.config.stop_rules import parse_stop_rules, patience_text
from adabatch_jax.config.value_texts import (
    NanPolicy,
    Score,
    check_dataset,
    check_name,
    check_path,
    check_split,
    folder_name,
    is_text,
    parse_channels,
    parse_deviations,
    parse_nan_policy,
    parse_profiled,
    parse_score,
)  # fmt: skip
from adabatch_jax.schedules.batch_size_schedules import Schedule, SeesawGrowth
from adabatch_jax.schedules.durations import Duration, period_duration, run_duration
from adabatch_jax.schedules.growth_with_decay import schedule_and_rate
from adabatch_jax.schedules.learning_rate_text import (
    COUPLINGS,
    LearningRate,
    coupling_power,
    parse_learning_rate,
)  # fmt: skip
from adabatch_jax.schedules.plan import BatchPlan, untold_plan
from adabatch_jax.schedules.schedule_text import parse_schedule
from adabatch_jax.schedules.strides import Remainder
from adabatch_jax.schedules.text_reader import decimal_text, exact
from adabatch_jax.system.errors import UsageError, did_you_mean
from adabatch_jax.system.quantities import SEED_LIMIT, parse_bytes, parse_seconds

NUMBERS, FUTURE, LAYOUT, OPERATION = Role

AUTO = "auto"  # left to the program
Auto = Literal["auto"]
NEXT = "next"  # the phase behind the one in which a run is when it begins
Next = Literal["next"]
Accumulation = Literal["auto", "fused", "split"]
Input = Literal["auto", "resident", "streaming"]
DecayOn = Literal["all", "matrices"]

TRACKERS = ("tensorboard", "wandb")
"""Those that there are, beside a user's own."""

_DEFAULT_EPOCHS = 20.0
_DEFAULT_SEQUENCE_LENGTH = 256

_OF_IMAGES = ("image_size", "mean", "std", "crop_padding", "flip")
_OF_TEXTS = ("sequence_length", "tokenizer", "documents", "vocabulary_size")

# Settings that runs were named without; where they are none they are no part of a digest.
_NOT_NAMED = (
    "duration", "tokens_per_example", "half_lives", "init_from", "data.mean", "data.std", "stop_when",
    "patience", "data.sequence_length", "data.tokenizer", "data.documents", "data.vocabulary_size",
    "clip_norm", "beta1", "beta2", "epsilon", "decay_on",
    *(f"gpt.{name}" for name in declarations(GPTSettings)),
)  # fmt: skip

# What "auto" was before there was one; runs keep the names and digests that they had.
_BEFORE_AUTO = {"accumulation": "fused", "shard_params": False, "keep_best": "max test_accuracy"}

# fmt: off


@settings
class Layout:
    """How a run is laid out on its devices: it decides bits, never meaning.

    Raises:
      UsageError: a value that can't work, or two that can't go together.

    >>> Layout(device_memory="2KiB").device_memory
    2048
    """

    microbatch_size: int | Auto | None = setting(
        AUTO, LAYOUT, at_least=1, is_changeable=True,
        help="Examples, over all devices, that are computed at a time; none: the whole batch, as a "
        "loss that compares its examples needs; auto: what fits and is fast.")
    accumulation: Accumulation = setting(
        AUTO, LAYOUT,
        help="How micro-batches are computed: fused (in one program per batch size), split (one "
        "per call of a program that all batch sizes share), or auto: as the run was begun, fused.")
    steps_per_dispatch: int | Auto = setting(
        AUTO, LAYOUT, at_least=1,
        help="Updates per call of a program, a number or auto: several where they are short.")
    input: Input = setting(
        AUTO, LAYOUT,
        help="Where the examples live: resident (on the devices), streaming (from the host), or "
        "auto.")
    shard_params: bool | Auto = setting(
        AUTO, LAYOUT,
        help="Whether to spread parameters and optimizer state over the devices too (FSDP); auto: "
        "as the run was begun, not.")
    device_memory: int | str | None = setting(
        None, LAYOUT, read=parse_bytes, at_least=1, below=2**63,
        help="Memory of each device, such as 16GiB; none: what the device reports.")

    def __post_init__(self):
        check(self)
        if self.accumulation == "split" and self.microbatch_size in (None, AUTO):
            raise UsageError(
                "accumulation: split computes one micro-batch at a time; give microbatch_size a "
                "number.")
        if self.accumulation == "split" and self.steps_per_dispatch not in (1, AUTO):
            raise UsageError(
                "accumulation: split dispatches one micro-batch at a time, so steps_per_dispatch "
                f"must be 1 or auto, got {self.steps_per_dispatch}.")


@settings
class Keep:
    """Which checkpoints of a run stay.

    Raises:
      UsageError: a value that can't work.

    >>> Keep(newest=5, best="min test_loss", every="20ep").newest
    5
    """

    newest: int = setting(
        3, OPERATION, at_least=1, help="How many of the newest checkpoints to keep.")
    best: str | None = setting(
        AUTO, OPERATION, read=parse_score, has_spaces=True,
        help="Which checkpoint to keep beside the newest: max or min, and a figure of the "
        "evaluation; auto: of a text the lowest loss (min test_bits_per_token), else max "
        "test_accuracy, or where that isn't measured min test_loss; none: none.")
    every: str | int | None = setting(
        None, OPERATION, read=period_duration, at_least=1,
        help="How often to keep a checkpoint for good, such as 20ep; none: never.")

    def __post_init__(self):
        check(self)

    @property
    def score(self) -> Score | None:
        """What the best is chosen by, if it is kept."""
        return None if self.best is None else parse_score(self.best)


@settings
class Operation:
    """How a run is operated: its result doesn't depend on it as long as nothing goes wrong.

    Raises:
      UsageError: a value that can't work.

    >>> Operation(on_nan="skip:3", stall_timeout="30m").stall_timeout
    1800.0
    """

    on_nan: str = setting(
        "stop", FUTURE, read=parse_nan_policy,
        help="Where a loss or gradient isn't finite: stop; skip:N (leave out up to N such "
        "updates); or rollback (to the newest checkpoint's weights, once per checkpoint).")
    on_save_error: Literal["stop", "warn"] = setting(
        "stop", OPERATION,
        help="Where a checkpoint can't be written: stop; or warn, and train on until the next one.")
    interruption: Any = setting(
        None, OPERATION,
        help="An `Interruption`: signals and a time limit that stop the run, also while it waits "
        "for data or evaluates.")
    stall_timeout: float | str | None = setting(
        None, OPERATION, read=parse_seconds, above=0,
        help="The longest that an update, a batch or a checkpoint may take, such as 10m: then all "
        "stacks are written to stalls.log, and the exit code is 42; none: as long as it likes, or of "
        "several processes 60s.")
    stop_at_phase: int | Next | None = setting(
        None, OPERATION, at_least=2,
        help="Stop before the first update of this phase, counted from 1 as plan prints them, or "
        "of the next one behind that in which the run is when it begins: all is saved there, the "
        "exit code is 0, and the run goes on, on as many devices as there are then, when it is "
        "asked for without this or with another phase.")
    profile: str | None = setting(
        None, OPERATION, read=parse_profiled,
        help="Updates to trace with JAX's profiler, such as 10:20; the trace goes into the run's "
        "folder.")
    progress: Any = setting(
        None, OPERATION,
        help="What is told how it goes, by `log(row)`, `tick(step)` and `message(text)` inside of "
        "`with progress:`; none: nothing is shown.")
    trackers: Any = setting(
        ("tensorboard",), OPERATION,
        help="What is given the rows of metrics while they come: tensorboard, wandb, or an object "
        "with methods `start(run)`, `row(row)` and `finish(summary)`.")

    def __post_init__(self):
        check(self)

    @property
    def nan_policy(self) -> NanPolicy:
        """What `on_nan` says."""
        return parse_nan_policy(self.on_nan)


@settings
class DataSettings:
    """Where the examples come from, and how they are augmented."""

    dir: str | None = setting(
        None, OPERATION, read=check_path,
        help="Folder of the prepared datasets; none: the user's cache folder.")
    train_split: str | None = setting(
        None, NUMBERS, help="Split to train on, such as train[:90%]; none: the dataset's own.")
    test_split: str | None = setting(
        None, NUMBERS, read=check_split,
        help="Split to evaluate on, or of own data a share such as 20%; none: the dataset's own, "
        "else 20%.")
    holdout_split: str | None = setting(
        None, NUMBERS, read=check_split,
        help="Split kept out of the training, such as train[90%:], or of own data a share such as "
        "10%, to choose by; none: no such split.")
    image_size: int | None = setting(
        None, NUMBERS, at_least=1, below=2**15,
        help="Height and width to resize and crop images to; needed where they differ in size.")
    mean: str | None = setting(
        None, NUMBERS, read=parse_channels, has_spaces=True,
        help="What is subtracted from pixels in 0..1, a number or one per channel; none: the "
        "dataset's own, of own data that of the training images.")
    std: str | None = setting(
        None, NUMBERS, read=parse_deviations, has_spaces=True,
        help="What they are divided by then; none: as for mean.")
    crop_padding: int = setting(
        0, NUMBERS, at_least=0, below=2**15, is_changeable=True,
        help="Pixels of zeros on each side before a random crop to the original size; 0: no crop.")
    flip: bool = setting(
        False, NUMBERS, is_changeable=True, help="Whether to flip images left to right at random.")
    sequence_length: int | None = setting(
        None, NUMBERS, at_least=1,
        help="Of a text: tokens that each example trains on; none: 256.")
    tokenizer: str | None = setting(
        None, NUMBERS, read=check_path,
        help="Of a text: bytes, or the JSON file of a tokenizer of the package tokenizers; none: "
        "what the text was prepared with, or bytes.")
    documents: Literal["joined", "packed", "apart"] | None = setting(
        None, NUMBERS,
        help="Of a text: joined (sequences know nothing of documents), packed (a sequence may hold "
        "several, which don't see each other) or apart (each begins one); none: joined.")
    vocabulary_size: int | None = setting(
        None, NUMBERS, at_least=1,
        help="Of a text: how many tokens the network knows; none: the tokenizer's, or the largest "
        "of the text and 1.")

    def __post_init__(self):
        check(self, lambda name: f"data.{name}")


@settings
class TrainConfig:
    """A checked configuration of a training run.

    Schedules, learning rates and durations may be given as objects; they are kept as texts.

    Raises:
      UsageError: a value that can't work; the sentence names the field.

    >>> config = TrainConfig(batch_schedule="64 x2 every 5ep max 512", epochs=20)
    >>> config.plan(num_examples=1442).batch_sizes
    (64, 128, 256, 512)
    >>> TrainConfig(optimizer="sdg")
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: optimizer: 'sdg' is not one of sgd, adamw, muon; did you mean ...
    """

    name: str | None = setting(
        None, OPERATION, read=check_name,
        help="Name of the run and of its folder; none: made of dataset and model.")
    dataset: str = setting(
        "digits", NUMBERS, read=check_dataset,
        help="Dataset: digits, fashion_mnist, mnist, cifar10, cifar100, or any labelled images of "
        "tfds; a folder of images, an .npz, .csv or .parquet (./name is always a path); text:PATH, a "
        "file or folder of texts or tokens; or module:function, which returns sources.")
    model: str = setting(
        "cnn_digits", NUMBERS,
        help="Network: cnn_digits, resnet20_cifar, ..., or of tokens gpt_nano, gpt_micro, gpt_124m; "
        "or module:function (or FILE.py:function), which is "
        "called with num_classes, image_shape (of a text sequence_length) and seed and returns an nnx "
        "module, or params, model_state, loss_fn and eval_fn.")
    init_from: str | None = setting(
        None, NUMBERS, read=check_path,
        help="Weights to begin with: another run's folder, a .safetensors or an .npz; the last "
        "layer begins anew where the classes are others; none: drawn from the seed.")
    batch_schedule: str = setting(
        "32 x2 every 20% max 512", FUTURE, read=parse_schedule, is_changeable=True, has_spaces=True,
        help='Batch-size schedule, such as "128 x2 every 20ep max 2048" or "128, 20ep: 256"; or "128 x2 '
        'seesaw max 2048", where lr falls.')
    lr: str = setting(
        "0.05 x0.375 every 20%", FUTURE, read=parse_learning_rate, is_changeable=True,
        has_spaces=True, help="Learning rate at the reference batch size, such as "
        '"0.1 x0.375 every 20ep warmup 5ep".')
    coupling: str = setting(
        "linear", FUTURE, read=coupling_power,
        help="How the learning rate follows the batch: none, linear, sqrt, or a power.")
    reference_batch_size: int | None = setting(
        None, FUTURE, at_least=1, help="Batch size that lr is meant for; none: the schedule's "
        "first.")
    optimizer: Literal["sgd", "adamw", "muon"] = setting(
        "sgd", NUMBERS, help="Optimizer: sgd, adamw, or muon (for matrices but embeddings and a GPT's "
        "head, which adamw moves at the same rate, as all else).")
    half_lives: Literal["samples"] | None = setting(
        None, NUMBERS,
        help="What the half-lives of adamw's averages are constant in while the batch grows: "
        "samples, and then epsilon and weight decay follow it too; none: updates.")
    momentum: float = setting(
        0.9, NUMBERS, at_least=0, is_changeable=True, help="Momentum of sgd.")
    weight_decay: float = setting(
        5e-4, NUMBERS, at_least=0, is_changeable=True,
        help="Weight decay: added to the gradient by sgd, decoupled in adamw and muon.")
    decay_on: DecayOn | None = setting(
        None, NUMBERS, is_changeable=True,
        help="What decays: all, or matrices (arrays of two axes or more: no biases and norms; with "
        "muon those that it moves); none: matrices of a network of tokens, all of others.")
    beta1: float | None = setting(
        None, NUMBERS, at_least=0, below=1, is_changeable=True,
        help="How long adamw and muon remember gradients; none: 0.9, of muon's matrices 0.95.")
    beta2: float | None = setting(
        None, NUMBERS, at_least=0, below=1, is_changeable=True,
        help="How long adamw, also muon's, remembers squared gradients; none: 0.999.")
    epsilon: float | None = setting(
        None, NUMBERS, at_least=0, is_changeable=True,
        help="What adamw and muon add to what they divide by; none: 1e-8.")
    clip_norm: float | None = setting(
        None, NUMBERS, above=0,
        help="The largest norm of all gradients together, larger ones are scaled down to it; none: "
        "any.")
    epochs: float | None = setting(
        None, FUTURE, above=0, instead_of="duration",
        help="Length of the run in epochs; none: what duration says, or 20.")
    duration: str | None = setting(
        None, FUTURE, read=run_duration, instead_of="epochs",
        help="Length of the run in any unit, such as 1500st, 2.5Msp or 300Btok, in place of epochs.")
    tokens_per_example: int | None = setting(
        None, FUTURE, at_least=1,
        help="Tokens of an example, for durations in tokens such as 2.4Btok; none: not known.")
    seed: int = setting(
        0, NUMBERS, at_least=0, below=SEED_LIMIT,
        help="Seed of the initial weights, the order of the examples, augmentation and dropout.")
    microbatch_size: int | Auto | None = as_in(Layout, "microbatch_size")
    accumulation: Accumulation = as_in(Layout, "accumulation")
    steps_per_dispatch: int | Auto = as_in(Layout, "steps_per_dispatch")
    input: Input = as_in(Layout, "input")
    shard_params: bool | Auto = as_in(Layout, "shard_params")
    device_memory: str | None = as_in(Layout, "device_memory")
    batchnorm_group_size: int | None = setting(
        None, NUMBERS, at_least=1, is_changeable=True,
        help="Rows that BatchNorm normalizes together; none: the whole (micro-)batch.")
    batchnorm_reference_size: int | None = setting(
        None, NUMBERS, at_least=1, is_changeable=True,
        help="Group size that BatchNorm's running average is meant for: its half-life is then "
        "constant in examples; none: constant in groups, as in the official code.")
    compute_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", NUMBERS, is_changeable=True,
        help="Type to compute in: float32 or bfloat16; weights are float32.")
    remainder: Remainder = setting(
        "carry", NUMBERS, help="At an epoch's end: carry (on into the next), "
        "partial (batch), or drop (the rest).")
    eval_every: str = setting(
        "1ep", OPERATION, read=period_duration,
        help="How often to evaluate on the test set; always at the end.")
    eval_batch_size: int = setting(
        512, OPERATION, at_least=1,
        help="Examples per batch of the evaluation; doesn't change its result.")
    checkpoint_every: str = setting(
        "1ep", OPERATION, read=period_duration,
        help="How often to save a checkpoint; always at the end.")
    keep_checkpoints: int = as_in(Keep, "newest")
    keep_best: str | None = as_in(Keep, "best")
    keep_every: str | None = as_in(Keep, "every")
    on_nan: str = as_in(Operation, "on_nan")
    log_every: str = setting(
        "10st", OPERATION, read=period_duration, help="How often to write a row of metrics.")
    stop_when: str | None = setting(
        None, FUTURE, read=parse_stop_rules, has_spaces=True,
        help="Ends the run early: at the evaluation where this is met, such as 'test_accuracy >= "
        "0.99', or 'no lower test_loss for 5ep', with 'or' between several; none: the plan's end.")
    patience: str | None = setting(
        None, FUTURE, read=period_duration,
        help="Ends the run early: at the evaluation so long after the best one, such as 5ep, by "
        "what keep_best says, or where that is none by test_loss; none: the plan's end.")
    data: DataSettings = DataSettings()
    gpt: GPTSettings = GPTSettings()

    def __post_init__(self):
        check(self)
        if self.epochs is None and self.duration is None:
            object.__setattr__(self, "epochs", _DEFAULT_EPOCHS)
        for name in ("beta1", "beta2", "epsilon"):
            if self.optimizer == "sgd" and getattr(self, name) is not None:
                raise UsageError(f"{name}: sgd has none; give --optimizer adamw or muon.")
        self.layout  # checks what must go together
        self._check_data()
        self._schedule_and_rate
        is_seesaw = isinstance(parse_schedule(self.batch_schedule), SeesawGrowth)
        for name, is_asked in (("batch_schedule: seesaw", is_seesaw),
                               ("half_lives: samples", self.half_lives is not None)):
            if is_asked and coupling_power(self.coupling) != COUPLINGS["sqrt"]:
                raise UsageError(
                    f"{name} belongs to a rate that goes with the root of the batch; give coupling "
                    f"sqrt, got {self.coupling}.")
        if self.half_lives is not None and self.optimizer != "adamw":
            raise UsageError(f"half_lives: of the optimizer adamw, got {self.optimizer}.")

    def _check_data(self) -> None:
        """Raises a UsageError for what is said of images where there is a text, and vice versa."""
        wrong = _OF_IMAGES if is_text(self.dataset) else _OF_TEXTS
        for field in dataclasses.fields(self.data):
            if field.name in wrong and getattr(self.data, field.name) != field.default:
                what = "a text" if is_text(self.dataset) else "no text (text:FILE_OR_FOLDER)"
                raise UsageError(f"data.{field.name}: {self.dataset} is {what}, leave it out.")
        length = self.sequence_length
        if length is not None and self.tokens_per_example not in (None, length):
            raise UsageError(
                f"tokens_per_example: an example of a text has data.sequence_length={length} "
                f"tokens, not {self.tokens_per_example}; leave it out."
            )

    @property
    def sequence_length(self) -> int | None:
        """Tokens that an example of a text trains on; None where there is no text."""
        if not is_text(self.dataset):
            return None
        return self.data.sequence_length or _DEFAULT_SEQUENCE_LENGTH

    @property
    def tokens_of_example(self) -> int | None:
        """Tokens of an example, for durations in tokens; None where that isn't known."""
        return self.sequence_length or self.tokens_per_example

    @property
    def layout(self) -> Layout:
        """How the run is laid out on its devices."""
        return Layout(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Layout)})

    @property
    def keep(self) -> Keep:
        """Which checkpoints stay."""
        return Keep(self.keep_checkpoints, self.keep_best, self.keep_every)

    @property
    def stop_rule(self) -> str | None:
        """What ends the run early, from `stop_when` and `patience`."""
        patience = self.patience and patience_text(self.patience, self.keep_best)
        return " or ".join(filter(None, [self.stop_when, patience])) or None

    @property
    def schedule(self) -> Schedule:
        """What the batch size should be."""
        return self._schedule_and_rate[0]

    @property
    def learning_rate(self) -> LearningRate:
        """The base learning rate."""
        return self._schedule_and_rate[1]

    @property
    def _schedule_and_rate(self) -> tuple[Schedule, LearningRate]:
        return schedule_and_rate(parse_schedule(self.batch_schedule), parse_learning_rate(self.lr))

    @property
    def length(self) -> Duration:
        """The run's length, from `epochs` or `duration`."""
        if self.duration is not None:
            return run_duration(self.duration)
        return run_duration(f"{decimal_text(exact(self.epochs, 'epochs'))}ep")

    @property
    def run_name(self) -> str:
        """The name, or one made of dataset and model."""
        return self.name or f"{folder_name(self.dataset)}-{folder_name(self.model)}"

    @property
    def digest(self) -> str:
        """A hash of all settings, in hex."""
        return settings_digest(self.to_dict())

    def plan(self, num_examples: int | None, divisible_by: int = 1) -> BatchPlan:
        """The plan on a dataset of this size, or None; raises a UsageError where there is none.

        What it never reaches of the schedule is for the commands to tell.
        """
        rules = self.remainder, divisible_by, self.tokens_of_example
        try:
            plan = untold_plan(self.schedule, num_examples, self.length, *rules)
        except UsageError as error:
            if self.batch_schedule != type(self).batch_schedule:
                raise
            # Of what nobody wrote, the sentence would name a phase that nobody knows.
            raise UsageError(
                f"batch_schedule: with the default, {self.batch_schedule!r}, {error}"
            ) from None
        group = self.batchnorm_group_size
        for size in plan.batch_sizes:
            rows = min(self.microbatch_size, size) if type(self.microbatch_size) is int else size
            if group is not None and rows % group:
                raise UsageError(
                    f"batchnorm_group_size: {group} must divide the {rows} examples that are "
                    f"computed at a time where the batch is {size}; set microbatch_size to a "
                    f"multiple of {group}, or choose another group."
                )
        return plan

    def coupling_warnings(self, plan: BatchPlan) -> list[str]:
        """Sentences on a coupling that is meant for another optimizer."""
        # Not needed to read flags, and numpy is.
        from adabatch_jax.schedules.coupling_advice import coupling_warnings
        from adabatch_jax.schedules.learning_rate_at_step import resolve

        rules = self.coupling, self.reference_batch_size
        rate = resolve(plan, self.learning_rate, *rules)
        optimizer = "sgd" if self.optimizer == "sgd" else "adam"
        return [*coupling_warnings(plan, rate, *rules, optimizer)]

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values; `from_dict` gives them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: Any, origin: str = "the configuration") -> "TrainConfig":
        """Makes the configuration that `to_dict` described.

        Fields that are missing have their defaults; errors call the content `origin`.
        """
        if not isinstance(content, dict):
            raise UsageError(f"{origin} must be an object with fields, got {content!r}.")
        names = declarations(cls)
        groups = {name.partition(".")[0] for name in names if "." in name}
        empty = [name for name in content if name in groups and content[name] == {}]
        fields = flattened({name: content[name] for name in content if name not in empty})
        for name in fields:
            if name not in names:
                raise UsageError(
                    f"{origin} has an unknown field {name!r}{did_you_mean(name, names) or '.'}"
                )
        return replaced(cls(), fields)

# fmt: on


def settings_digest(content: Mapping[str, Any]) -> str:
    """A hash of settings in any order, in hex."""
    content = _named(content)
    content = {k: _BEFORE_AUTO.get(k, v) if v == AUTO else v for k, v in content.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _named(content: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    named = {
        name: _named(value, f"{name}.") if isinstance(value, Mapping) else value
        for name, value in content.items()
        if value is not None or group + name not in _NOT_NAMED
    }
    # A group whose settings are all left out is left out itself.
    return {name: value for name, value in named.items() if value != {} or content[name] == {}}
