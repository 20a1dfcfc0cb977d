"""The default: a small CNN on handwritten digits, the batch doubling from 32 to 512.

    python -m adabatch_jax.train --config experiments/digits.py

The same as `python -m adabatch_jax.train` without arguments. It needs nothing but the
installation: the 1,797 digits ship inside scikit-learn.

Measured on 2 CPU cores: 15 s for the whole command, 351 updates, test accuracy over seeds 0 to 4:
98.87, 99.44, 99.44, 98.59, 99.72 %, mean 99.21 %. With `--batch-schedule 32`: 902 updates, the same
accuracies.
"""

from adabatch_jax.config import TrainConfig

config = TrainConfig()
