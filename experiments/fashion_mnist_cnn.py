"""A small CNN on Fashion-MNIST: the paper's comparison for anybody's machine.

python -m experiments.reproduce fashion_mnist_cpu --seeds 5
"""

from adabatch_jax.config import TrainConfig
from experiments.arms import single_device_arms

arms = single_device_arms(
    TrainConfig(
        dataset="fashion_mnist",
        model="cnn_fashion",
        lr="0.05",
        epochs=15,
        microbatch_size=64,
        checkpoint_every="5ep",
        keep_checkpoints=1,
        log_every="1ep",
    ),
    small=64,
    large=1024,
    decay="0.375",
    interval="3ep",
    warmup="2ep",
    cap=6000,
)
