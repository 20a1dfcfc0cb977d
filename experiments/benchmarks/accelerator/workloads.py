"""What is measured: the paper's networks, with the batch sizes that each is tried at."""

import dataclasses

_POWERS = tuple(2**k for k in range(7, 15))  # 128 to 16,384


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and its batch sizes.

    Attributes:
      title: for tables.
      model: its name in `adabatch_jax.models`.
      batch_sizes: in examples, ascending.
      example_bytes: roughly what an example takes in a step; what doesn't fit comes in
        micro-batches.
      image_size: height and width in pixels.
      num_classes: of CIFAR-100, or ImageNet.
      schedule: the paper's adaptive batches on one device; None where it has none.
      microbatch_limit: more examples aren't computed at a time, whatever fits.
    """

    title: str
    model: str
    batch_sizes: tuple[int, ...]
    example_bytes: int
    image_size: int = 32
    num_classes: int = 100
    schedule: str | None = None
    microbatch_limit: int | None = None


RESNET20 = Workload(
    "ResNet-20", "resnet20_cifar", _POWERS, 2_500_000, schedule="128 x2 every 20ep max 2048"
)
VGG19_BN = Workload(
    "VGG19_BN", "vgg19_bn_cifar", _POWERS, 8_000_000, schedule="128 x2 every 20ep max 2048"
)
ALEXNET = Workload(
    "AlexNet", "alexnet_cifar", _POWERS, 600_000, schedule="256 x2 every 20ep max 4096"
)
RESNET50 = Workload("ResNet-50", "resnet50", (64, 128, 256, 1024, 4096), 110_000_000, 224, 1000)
QUICK = Workload(
    "digits CNN", "cnn_digits", (4, 8), 1, 8, 10, "4 x2 every 20ep max 8", microbatch_limit=4
)

# What XLA needs is only roughly known.
_SHARE_OF_MEMORY = 0.6


def largest_microbatch(workload: Workload, memory_bytes: int | None) -> int:
    """The largest power of two of examples that should fit into a device's memory.

    Args:
      workload: the network.
      memory_bytes: what the device has; None where it doesn't tell, then all that is asked for.

    >>> largest_microbatch(RESNET50, 60 * 2**30)
    256
    """
    largest = workload.microbatch_limit or workload.batch_sizes[-1]
    if memory_bytes is None:
        return largest
    fitting = max(int(_SHARE_OF_MEMORY * memory_bytes / workload.example_bytes), 1)
    return min(largest, 2 ** (fitting.bit_length() - 1))
