"""The arms of one comparison, made from a common base, so that only the schedule differs.

The base says what training with the small batch does: its `lr` is meant for the small batch, and
decays. Every other arm follows from it by the batch schedule, the coupling, or a warm-up. All arms
change at the first step at or after the same sample. (In the official code the fixed ImageNet arm
decays an epoch before the adaptive one; and its warm-up climbs by epochs, here it does by updates.)
"""

import dataclasses
from fractions import Fraction
from typing import Any

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.schedules.text_reader import decimal_text

CIFAR = TrainConfig(
    epochs=100,
    # What the official code does, and what its numbers of updates come from.
    remainder="drop",
    checkpoint_every="5ep",
    keep_checkpoints=1,
    log_every="1ep",
    eval_batch_size=2000,
    data=DataSettings(crop_padding=4, flip=True),
)
"""What the experiments of sections 4.1 and 4.2 share: SGD with momentum 0.9, decay 5e-4."""


def single_device_arms(
    base: TrainConfig, small: int, large: int, decay: str, interval: str, warmup: str, cap: int
) -> dict[str, TrainConfig]:
    """Section 4.1 of the paper, and its rivals.

    Args:
      base: everything but the schedule; `base.lr` is a number, the rate to begin with at `small`.
      small: the small batch.
      large: the large one, which the adaptive arm reaches by doubling.
      decay: what the rate is multiplied by at a fixed batch, as "0.375".
      interval: how often, as "20ep".
      warmup: of the large batch with a scaled rate, as "5ep".
      cap: where Smith's arm stops growing, about a tenth of the examples.

    Returns:
      By name: "fixed_small" and "adaptive" (the batch doubles, and lr / batch decays alike);
      "fixed_large" (the large batch with the small one's rate, as in the paper); "goyal" (the
      large batch with its rate scaled linearly, after a warm-up; arXiv:1706.02677); "smith" (the
      batch grows by what the rate would decay, up to the cap; arXiv:1711.00489); "sqrt" (the
      adaptive batches, the rate scaled by the square root).
    """
    growth = decimal_text(1 / Fraction(decay))
    rate, decays = base.lr, f"{base.lr} x{decay} every {interval}"
    base = dataclasses.replace(base, lr=decays, reference_batch_size=small)
    doubling = f"{small} x2 every {interval} max {large}"
    schedules = {
        "fixed_small": {"batch_schedule": f"{small}"},
        "fixed_large": {"batch_schedule": f"{large}", "reference_batch_size": large},
        "adaptive": {"batch_schedule": doubling},
        "goyal": {
            "batch_schedule": f"{large}",
            "lr": f"{decays} warmup {warmup} from {rate}",
        },
        "smith": {"batch_schedule": f"{small} x{growth} every {interval} max {cap}"},
        "sqrt": {"batch_schedule": doubling, "coupling": "sqrt"},
    }
    return {name: dataclasses.replace(base, **fields) for name, fields in schedules.items()}


def paper_single_device(
    dataset: str, model: str, small: int = 128, large: int = 2048, cap: int = 5000, **changes: Any
) -> dict[str, TrainConfig]:
    """The arms of section 4.1 for one network: 100 epochs, decay 0.375 every 20 epochs."""
    base = dataclasses.replace(CIFAR, dataset=dataset, model=model, lr="0.01", **changes)
    return single_device_arms(base, small, large, "0.375", "20ep", "5ep", cap)


def paper_four_devices(model: str) -> dict[str, TrainConfig]:
    """The arms of section 4.2 on CIFAR-100: rate 0.1 at batch 128, decay 0.25 every 20 epochs.

    A warm-up of 5 epochs takes every start above 128 from 0.1 to its linearly scaled rate. That the
    large arms lie between 1024 and 16384 could not be checked against the paper. In the official
    code each device normalises its own quarter of the batch; here BatchNorm does so for groups of
    32 rows in the arms that begin at 128, and of 256 in those that begin at 1024 or more. The
    fixed arms of 1024 and 16384 are Goyal et al.'s; "smith" grows from 128 to a tenth of the
    examples instead of decaying; "sqrt" has the adaptive batches.
    """
    base = dataclasses.replace(
        CIFAR,
        dataset="cifar100",
        model=model,
        lr="0.1 x0.25 every 20ep",
        reference_batch_size=128,
        batchnorm_group_size=32,
    )
    warm = dataclasses.replace(base, lr=f"{base.lr} warmup 5ep from 0.1", batchnorm_group_size=256)
    doubling = "1024 x2 every 20ep max 16384"
    return {
        "fixed_small": dataclasses.replace(base, batch_schedule="128"),
        "adaptive_128": dataclasses.replace(base, batch_schedule="128 x2 every 20ep max 2048"),
        "fixed_1024": dataclasses.replace(warm, batch_schedule="1024"),
        "adaptive": dataclasses.replace(warm, batch_schedule=doubling),
        "fixed_large": dataclasses.replace(warm, batch_schedule="16384"),
        "smith": dataclasses.replace(base, batch_schedule="128 x4 every 20ep max 4992"),
        "sqrt": dataclasses.replace(warm, batch_schedule=doubling, coupling="sqrt"),
    }


def paper_imagenet(model: str, lr: str) -> dict[str, TrainConfig]:
    """The arms of section 4.3: 90 epochs, decay 0.1 and growth by 2, 4 or 8 at epochs 30 and 60.

    Micro-batches of 256 examples, which are also BatchNorm's groups, make up the batch. That the
    start is 8192 follows from 524,288 = 8192 * 8 * 8; no source says so, nor what the rates of
    AlexNet and VGG were. Images are scaled to 224 pixels, cut in the middle, and shifted by up
    to 28 pixels; the original crops have random sizes. "fixed_large" is Goyal et al.'s arm; "smith"
    grows by 10 to a tenth of the examples instead of decaying; "sqrt" has the batches of x2.

    Args:
      model: the network.
      lr: the rate at batch 256.
    """
    base = TrainConfig(
        dataset="imagenet2012",
        model=model,
        lr=f"{lr}, 30ep: {_tenth(lr)}, 60ep: {_tenth(_tenth(lr))} warmup 5ep from {lr}",
        reference_batch_size=256,
        epochs=90,
        weight_decay=1e-4,
        remainder="drop",
        keep_checkpoints=1,
        log_every="100st",
        microbatch_size=256,
        data=dataclasses.replace(CIFAR.data, image_size=224, crop_padding=28),
    )
    arms = {
        "fixed_small": dataclasses.replace(base, batch_schedule="8192"),
        "fixed_large": dataclasses.replace(base, batch_schedule="131072"),
    }
    for factor in (2, 4, 8):
        sizes = f"8192, 30ep: {8192 * factor}, 60ep: {8192 * factor**2}"
        arms[f"adaptive_x{factor}"] = dataclasses.replace(base, batch_schedule=sizes)
    arms["smith"] = dataclasses.replace(base, batch_schedule="8192, 30ep: 81920, 60ep: 128000")
    arms["sqrt"] = dataclasses.replace(arms["adaptive_x2"], coupling="sqrt")
    return arms


def _tenth(rate: str) -> str:
    return decimal_text(Fraction(rate) / 10)
