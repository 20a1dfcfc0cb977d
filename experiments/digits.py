"""The default: a small CNN on handwritten digits, the batch doubling from 32 to 512.

    python -m adabatch_jax.train --config experiments/digits.py

The same as `python -m adabatch_jax.train` without arguments. It needs nothing but the
installation: the 1,797 digits ship inside scikit-learn.
"""

from adabatch_jax.config import TrainConfig

config = TrainConfig()
