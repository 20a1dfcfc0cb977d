"""AlexNet on CIFAR-100 with batches of 256, 4096, 256 to 4096.

The arms of the paper's section 4.1, and its rivals.

    python -m experiments.reproduce cifar100 --networks alexnet
"""

from experiments.arms import paper_single_device

arms = paper_single_device("cifar100", "alexnet_cifar", small=256, large=4096)
