"""What the two arms of the Fashion-MNIST experiment share; only the batch schedule differs.

The paper's recipe (arXiv:1712.02029, section 4.1) in three epochs: ResNet-20, SGD
with momentum 0.9 and weight decay 5e-4, learning rate 0.1 decayed by 0.375 per interval, here one
epoch. BatchNorm normalises over micro-batches of 64 examples in both arms, so growing the batch
changes nothing but the number of updates.
"""

from adabatch_jax.config import DataSettings, TrainConfig

base = TrainConfig(
    dataset="fashion_mnist",
    model="resnet20_cifar",
    lr="0.1 x0.375 every 1ep",
    reference_batch_size=128,
    epochs=3,
    microbatch_size=64,
    data=DataSettings(crop_padding=2, flip=True),
)
