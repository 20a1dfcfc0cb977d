"""VGG19 with BatchNorm on ImageNet, the batch growing 2, 4 or 8 times twice (the paper's section 4.3).

python -m experiments.reproduce imagenet --networks vgg19_bn
"""

from experiments.arms import paper_imagenet

arms = paper_imagenet("vgg19_bn", lr="0.01")
