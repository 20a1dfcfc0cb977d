"""ResNet-20 on CIFAR-100 with batches of 128, 2048, 128 to 2048.

The arms of the paper's section 4.1, and its rivals.

    python -m experiments.reproduce cifar100 --networks resnet20
"""

from experiments.arms import paper_single_device

arms = paper_single_device("cifar100", "resnet20_cifar")
