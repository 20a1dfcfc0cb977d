"""ResNet-20 on CIFAR-100, on four devices with warm-up, 1024 to 16384.

The arms of the paper's section 4.2, and its rivals.

    python -m experiments.reproduce cifar100_four_devices --networks resnet20
"""

from experiments.arms import paper_four_devices

arms = paper_four_devices("resnet20_cifar")
