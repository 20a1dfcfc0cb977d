"""ResNet-50 on ImageNet, the batch growing 2, 4 or 8 times twice.

The arms of the paper's section 4.3, and its rivals.

    python -m experiments.reproduce imagenet --networks resnet50
"""

from experiments.arms import paper_imagenet

arms = paper_imagenet("resnet50", lr="0.1")
