"""ResNet-20 on Fashion-MNIST with a batch that doubles every quarter of an epoch, from 128 to 1024.

    python -m adabatch_jax.prepare fashion_mnist
    python -m adabatch_jax.train --config experiments/fashion_mnist_resnet20_adabatch.py

It needs the network, or Debian's package dataset-fashion-mnist, to prepare the images once.
Measured on 2 CPU cores that other jobs shared: 221 updates in 7 minutes, test accuracy 82.76 %
(seed 0; the fixed twin: 469 updates, 84.06 %).
"""

import dataclasses

from experiments.fashion_mnist_one_epoch import base

config = dataclasses.replace(
    base,
    name="fashion_mnist_resnet20_adabatch",
    batch_schedule="128 x2 every 0.25ep max 1024",
)
