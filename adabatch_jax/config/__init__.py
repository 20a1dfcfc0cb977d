"""What a user may say about a run, checked: `TrainConfig`, from flags, Python files and JSON.

`settings` declares every setting, `flags` reads command lines. Nothing here knows jax, data or
folders.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "TrainConfig":  # when it is asked for: files in this room import each other
        from adabatch_jax.config.train_config import TrainConfig

        return TrainConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
