"""A small CNN on handwritten digits: the arms that run anywhere in minutes.

    python -m experiments.reproduce digits --seeds 3

Measured on 2 CPU cores: a minute for three seeds, 4.5 minutes for twenty; the figures are in
`results/digits/results.md`.
"""

import dataclasses

from adabatch_jax.config import TrainConfig
from experiments.arms import single_device_arms

arms = single_device_arms(
    dataclasses.replace(TrainConfig(), lr="0.05", checkpoint_every="5ep", keep_checkpoints=1),
    small=32,
    large=512,
    decay="0.375",
    interval="4ep",
    warmup="2ep",
    cap=144,
)
