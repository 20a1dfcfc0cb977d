"""VGG19 with BatchNorm on ImageNet, the batch growing 2, 4 or 8 times twice.

The arms of the paper's section 4.3, and its rivals.

    python -m experiments.reproduce imagenet --networks vgg19_bn
"""

from experiments.arms import paper_imagenet

arms = paper_imagenet("vgg19_bn", lr="0.01")
