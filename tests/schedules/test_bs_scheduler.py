"""The shapes of PyPI's bs-scheduler that don't look at the loss, size by size.

The sizes below are those of bs-scheduler 1.0.2; with the package installed (it needs torch) they
are compared with it anew.
"""

import importlib.util
import itertools
import math
import warnings

import pytest

import adabatch_jax as ab
from adabatch_jax.schedules.plan import first_step_from, make_plan

NUM_EPOCHS, BASE, MAX = 24, 32, 1000


def each_epoch(fn):
    return ab.sampled(fn, every="1ep", unit="ep")


def cosine(start, end, num_epochs):
    """A cosine from one size to another, which then stays."""

    def size(epoch):
        return round(end + (start - end) * (1 + math.cos(math.pi * epoch / num_epochs)) / 2)

    return each_epoch(lambda epoch: size(min(epoch, num_epochs)))


def triangular2(epoch, down=4, up=6, low=1):
    cycle = epoch // (down + up)
    x = 1.0 + epoch / (down + up) - (1 + cycle)  # a tie falls as their floats let it
    turn = down / (down + up)
    share = x / turn if x <= turn else (x - 1) / (turn - 1)
    return round(BASE - (BASE - low) * share / 2**cycle)


def step_by_step(first, factor, num_epochs):
    """Sizes that are each rounded before the next factor."""
    sizes = list(
        itertools.accumulate(range(1, num_epochs), lambda s, e: round(s * factor(e)), initial=first)
    )
    return each_epoch(lambda epoch: sizes[min(epoch, num_epochs - 1)])


OURS = {
    "LambdaBS": each_epoch(lambda epoch: round(BASE * 1.05**epoch)),
    "MultiplicativeBS": step_by_step(round(BASE * 1.05), lambda epoch: 1.05, NUM_EPOCHS),
    "StepBS": "32 x2 every 6ep max 1000",
    "MultiStepBS": "32, 5ep: 64, 12ep: 128, 20ep: 256",
    "ConstantBS": "64, 5ep: 32",
    "LinearBS": step_by_step(3 * BASE, lambda epoch: (15 - 2 * epoch) / (17 - 2 * epoch), 6),
    "ExponentialBS": "32 x1.1 every 1ep max 1000",
    "PolynomialBS": "32 to 176 over 9ep in 10",
    "CosineAnnealingBS": each_epoch(
        lambda epoch: round(MAX - (MAX - BASE) * (1 + math.cos(math.pi * epoch / 10)) / 2)
    ),
    "CyclicBS": each_epoch(triangular2),
    "CosineAnnealingBSWithWarmRestarts": ab.joined(
        {"0ep": cosine(BASE, MAX, 6), "7ep": cosine(BASE, MAX, 12), "20ep": cosine(BASE, MAX, 24)}
    ),
    "OneCycleBS": ab.joined({"0ep": cosine(BASE, 1, 6), "6ep": cosine(1, MAX, 14)}),
    "SequentialBS": ab.joined(
        {"0ep": "64, 3ep: 32", "5ep": each_epoch(lambda epoch: round(BASE * 1.1 ** (epoch + 1)))}
    ),
    "ChainedBSScheduler": ab.joined(
        {
            "0ep": "64 x1.1 every 1ep",
            "5ep": each_epoch(lambda epoch: round(47 * 1.1 ** (epoch + 1))),
        }
    ),
}

# fmt: off
THEIRS = {
    "LambdaBS": [32, 34, 35, 37, 39, 41, 43, 45, 47, 50, 52, 55, 57, 60, 63, 67, 70, 73, 77, 81, 85, 89, 94, 98],
    "MultiplicativeBS": [34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 55, 58, 61, 64, 67, 70, 74, 78, 82, 86, 90, 94, 99, 104],
    "StepBS": [32] * 6 + [64] * 6 + [128] * 6 + [256] * 6,
    "MultiStepBS": [32] * 5 + [64] * 7 + [128] * 8 + [256] * 4,
    "ConstantBS": [64] * 5 + [32] * 19,
    "LinearBS": [96, 83, 70, 57, 44] + [31] * 19,
    "ExponentialBS": [32, 35, 39, 43, 47, 52, 57, 62, 69, 75, 83, 91, 100, 110, 122, 134, 147, 162, 178, 196, 215, 237, 260, 287],
    "PolynomialBS": [32, 48, 64, 80, 96, 112, 128, 144, 160] + [176] * 15,
    "CosineAnnealingBS": [32, 56, 124, 232, 366, 516, 666, 800, 908, 976, 1000, 976, 908, 800, 666, 516, 366, 232, 124, 56, 32, 56, 124, 232],
    "CyclicBS": [32, 24, 17, 9, 1, 6, 11, 16, 22, 27, 32, 28, 24, 20, 17, 19, 22, 24, 27, 29, 32, 30, 28, 26],
    "CosineAnnealingBSWithWarmRestarts": [32, 97, 274, 516, 758, 935, 1000, 32, 48, 97, 174, 274, 391, 516, 641, 758, 858, 935, 984, 1000, 32, 36, 48, 69],
    "OneCycleBS": [32, 30, 24, 16, 9, 3, 1, 14, 50, 110, 189, 284, 389, 500, 612, 717, 812, 891, 951, 987, 1000, 1000, 1000, 1000],
    "SequentialBS": [64, 64, 64, 32, 32, 35, 39, 43, 47, 52, 57, 62, 69, 75, 83, 91, 100, 110, 122, 134, 147, 162, 178, 196],
    "ChainedBSScheduler": [64, 70, 77, 85, 94, 52, 57, 63, 69, 76, 83, 92, 101, 111, 122, 134, 148, 162, 178, 196, 216, 238, 261, 287],
}
# fmt: on


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_size_in_every_epoch(name):
    plan = make_plan(OURS[name], num_examples=10_000, duration="24ep", remainder="partial")
    starts = [first_step_from(plan, 10_000 * epoch) for epoch in range(NUM_EPOCHS)]
    assert [plan.batch_size_at(step) for step in starts] == THEIRS[name]
    ends = [step - 1 for step in starts[1:]] + [plan.num_steps - 1]
    assert [plan.batch_size_at(step) for step in ends] == THEIRS[name]


def test_with_the_package_itself():
    if importlib.util.find_spec("bs_scheduler") is None:
        pytest.skip("compares with PyPI's bs-scheduler: pip install bs-scheduler torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about NumPy
        import bs_scheduler as bs

    class Held(bs.BatchSizeManager):
        def __init__(self):
            self.size = BASE

        def get_current_batch_size(self):
            return self.size

        def set_batch_size(self, size):
            self.size = size

    made = {
        "LambdaBS": lambda **k: bs.LambdaBS(None, lambda epoch: 1.05**epoch, **k),
        "MultiplicativeBS": lambda **k: bs.MultiplicativeBS(None, lambda epoch: 1.05, **k),
        "StepBS": lambda **k: bs.StepBS(None, 6, 2.0, **k),
        "MultiStepBS": lambda **k: bs.MultiStepBS(None, [5, 12, 20], 2.0, **k),
        "ConstantBS": lambda **k: bs.ConstantBS(None, 2.0, 5, **k),
        "LinearBS": lambda **k: bs.LinearBS(None, 3.0, 1.0, 5, **k),
        "ExponentialBS": lambda **k: bs.ExponentialBS(None, 1.1, **k),
        "PolynomialBS": lambda **k: bs.PolynomialBS(None, 10, 1.0, **k),
        "CosineAnnealingBS": lambda **k: bs.CosineAnnealingBS(None, 10, **k),
        "CyclicBS": lambda **k: bs.CyclicBS(None, BASE, 4, 6, mode="triangular2", **k),
        "CosineAnnealingBSWithWarmRestarts": lambda **k: bs.CosineAnnealingBSWithWarmRestarts(
            None, 6, factor=2, **k
        ),
        "OneCycleBS": lambda **k: bs.OneCycleBS(None, 20, **k),
        "SequentialBS": lambda **k: bs.SequentialBS(
            [bs.ConstantBS(None, 2.0, 3, **k), bs.ExponentialBS(None, 1.1, **k)], [5]
        ),
        "ChainedBSScheduler": lambda **k: bs.ChainedBSScheduler(
            [bs.ConstantBS(None, 2.0, 5, **k), bs.ExponentialBS(None, 1.1, **k)]
        ),
    }
    assert made.keys() == THEIRS.keys()
    for name, make in made.items():
        held, sizes = Held(), []
        scheduler = make(batch_size_manager=held, max_batch_size=MAX)
        for _ in range(NUM_EPOCHS):
            sizes.append(held.size)
            scheduler.step()
        assert sizes == THEIRS[name], name
