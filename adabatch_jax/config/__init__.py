"""What a user may say about a run, checked: from flags, Python files, JSON, or as arguments.

`settings` declares every setting, `command_line` reads command lines. Nothing here knows jax, data
folders.
"""

from adabatch_jax.config.settings import DataSettings, Keep, Layout, Operation, TrainConfig

__all__ = ["DataSettings", "Keep", "Layout", "Operation", "TrainConfig"]
