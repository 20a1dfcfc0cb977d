"""AlexNet on Fashion-MNIST, padded to 32x32, with the arms of the paper's section 4.1.

    python -m experiments.reproduce fashion_mnist --networks alexnet

No example is lost at an epoch's end, unlike in the experiments on CIFAR.
"""

from experiments.arms import paper_single_device

arms = paper_single_device(
    "fashion_mnist", "alexnet_cifar", small=256, large=4096, cap=6000, remainder="carry"
)
