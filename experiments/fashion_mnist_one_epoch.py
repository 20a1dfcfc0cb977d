"""What the two arms of the short Fashion-MNIST run share; only the batch schedule differs.

The paper's recipe (arXiv:1712.02029, section 4.1) in one epoch: ResNet-20, SGD with momentum 0.9
and weight decay 5e-4, learning rate 0.1 decayed by 0.375 per interval, here a quarter of an epoch.
BatchNorm normalises over micro-batches of 64 examples in both arms, so growing the batch changes
nothing but the number of updates. The paper's 100 epochs are in `fashion_mnist_resnet20.py`.
"""

from adabatch_jax.config import DataSettings, TrainConfig

base = TrainConfig(
    dataset="fashion_mnist",
    model="resnet20_cifar",
    lr="0.1 x0.375 every 0.25ep",
    reference_batch_size=128,
    epochs=1,
    microbatch_size=64,
    data=DataSettings(crop_padding=2, flip=True),
)
