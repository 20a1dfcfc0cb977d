"""ResNet-20 on Fashion-MNIST, padded to 32x32, with the arms of the paper's section 4.1.

    python -m experiments.reproduce fashion_mnist --networks resnet20

No example is lost at an epoch's end, unlike in the experiments on CIFAR.
"""

from experiments.arms import paper_single_device

arms = paper_single_device("fashion_mnist", "resnet20_cifar", cap=6000, remainder="carry")
