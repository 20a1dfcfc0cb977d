"""VGG19 with BatchNorm on CIFAR-100 with batches of 128, 2048, 128 to 2048.

The arms of the paper's section 4.1, and its rivals.

    python -m experiments.reproduce cifar100 --networks vgg19_bn
"""

from experiments.arms import paper_single_device

arms = paper_single_device("cifar100", "vgg19_bn_cifar")
