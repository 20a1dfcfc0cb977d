"""ResNet-20 on Fashion-MNIST with a fixed batch of 128: the twin of the adaptive arm.

    python -m adabatch_jax.prepare fashion_mnist
    python -m adabatch_jax.train --config experiments/fashion_mnist_resnet20_fixed.py
"""

import dataclasses

from experiments.fashion_mnist_resnet20 import base

config = dataclasses.replace(base, name="fashion_mnist_resnet20_fixed", batch_schedule="128")
