"""ResNet-20 on Fashion-MNIST with a fixed batch of 128: the twin of the adaptive arm.

    python -m adabatch_jax.prepare fashion_mnist
    python -m adabatch_jax.train --config experiments/fashion_mnist_resnet20_fixed.py

It needs the network, or Debian's package dataset-fashion-mnist, to prepare the images once.
Measured on 2 CPU cores that other jobs shared: 1,407 updates in 18 minutes, test accuracy 89.80 %
(seed 0; the adaptive twin: 821 updates, 89.74 %).
"""

import dataclasses

from experiments.fashion_mnist_three_epochs import base

config = dataclasses.replace(base, name="fashion_mnist_resnet20_fixed", batch_schedule="128")
