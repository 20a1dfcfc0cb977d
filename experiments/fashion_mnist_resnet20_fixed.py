"""ResNet-20 on Fashion-MNIST with a fixed batch of 128: the twin of the adaptive arm.

    python -m adabatch_jax.prepare fashion_mnist
    python -m adabatch_jax.train --config experiments/fashion_mnist_resnet20_fixed.py

It needs the network, or Debian's package dataset-fashion-mnist, to prepare the images once.
Measured on 2 CPU cores that other jobs shared: 469 updates in 6 minutes, test accuracy 84.06 %
(seed 0; the adaptive twin: 221 updates, 82.76 %).
"""

import dataclasses

from experiments.fashion_mnist_one_epoch import base

config = dataclasses.replace(base, name="fashion_mnist_resnet20_fixed", batch_schedule="128")
