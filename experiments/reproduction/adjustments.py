"""What a study changes in its arms' configurations, the same way in each."""

import dataclasses
from fractions import Fraction
from typing import Any

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.value_texts import is_text
from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.text_reader import exact
from adabatch_jax.system.errors import UsageError


def with_holdout(config: TrainConfig, percent: int) -> TrainConfig:
    """Keeps the last part of the training split out of training, to be evaluated on.

    Args:
      config: an arm; it trains on a whole split, or on a text.
      percent: of the training split's examples; 0 trains on all of them.

    Raises:
      UsageError: an arm trains on a part of a split already.

    >>> with_holdout(TrainConfig(), 10).data.train_split
    'train[:90%]'
    >>> with_holdout(TrainConfig(dataset="text:corpus.txt"), 5).data.holdout_split
    '5%'
    """
    if percent == 0:
        return config
    if is_text(config.dataset):
        data = dataclasses.replace(config.data, holdout_split=f"{percent}%")
        return dataclasses.replace(config, data=data)
    split = config.data.train_split or "train"
    if "[" in split or "+" in split:
        raise UsageError(
            f"--holdout-percent: an arm trains on {split!r}, of which no part can be held out; "
            "give --holdout-percent 0."
        )
    kept = 100 - percent
    data = dataclasses.replace(
        config.data, train_split=f"{split}[:{kept}%]", holdout_split=f"{split}[{kept}%:]"
    )
    return dataclasses.replace(config, data=data)


def with_epochs(config: TrainConfig, epochs: float) -> TrainConfig:
    """Makes a run longer or shorter, and its schedules and warm-up with it.

    >>> config = TrainConfig(batch_schedule="32 x2 every 4ep", lr="0.1 x0.5 every 4ep", epochs=20)
    >>> shorter = with_epochs(config, 15)
    >>> shorter.batch_schedule, shorter.lr, shorter.epochs
    ('32 x2 every 3ep', '0.1 x0.5 every 3ep', 15.0)
    """
    if not epochs > 0:
        raise UsageError(f"--epochs: must be above 0, got {epochs:g}.")
    ratio = exact(epochs, "epochs") / exact(config.epochs, "epochs")
    if ratio == 1:
        return config
    return dataclasses.replace(
        config,
        epochs=epochs,
        batch_schedule=_stretched(config.schedule, ratio),
        lr=_stretched(config.learning_rate, ratio),
    )


def with_lr_scale(config: TrainConfig, scale: float) -> TrainConfig:
    """Multiplies the whole learning rate, the start of its warm-up included.

    >>> with_lr_scale(TrainConfig(lr="0.1 x0.375 every 20ep warmup 5ep from 0.1"), 0.5).lr
    '0.05 x0.375 every 20ep warmup 5ep from 0.05'
    """
    factor = exact(scale, "scale")
    if factor == 1:
        return config  # the text too stays as it was written
    return dataclasses.replace(config, lr=config.learning_rate.times(factor))


def _stretched(value: Any, ratio: Fraction) -> Any:
    """Multiplies every duration inside; percents of the run stay what they are."""
    if isinstance(value, Duration):
        return value if value.unit == "%" else value.times(ratio)
    if isinstance(value, tuple):
        return tuple(_stretched(item, ratio) for item in value)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return type(value)(**{name: _stretched(item, ratio) for name, item in fields.items()})
    return value
