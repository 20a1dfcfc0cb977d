"""ResNet-20 on Fashion-MNIST with a batch that doubles after each epoch, from 128 to 512.

    python -m adabatch_jax.prepare fashion_mnist
    python -m adabatch_jax.train --config experiments/fashion_mnist_resnet20_adabatch.py
"""

import dataclasses

from experiments.fashion_mnist_resnet20 import base

config = dataclasses.replace(
    base,
    name="fashion_mnist_resnet20_adabatch",
    batch_schedule="128 x2 every 1ep max 512",
)
