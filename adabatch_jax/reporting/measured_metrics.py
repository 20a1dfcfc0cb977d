"""The metrics that rows have, whatever they are called: titles, texts, and which way is better.

A metric's name says where it was measured and what it is: "test_loss" is the loss on "test". Its
words say which way is better: with one of `HIGHER_IS_BETTER` more is, with one of `LOWER_IS_BETTER`
less is, and of any other that isn't known. What a run keeps its best checkpoint by goes before.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adabatch_jax.config.value_texts import Score, parse_score
from adabatch_jax.reporting.saved_run import Run, is_figure
from adabatch_jax.runs.display.status import BITS
from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.number_texts import percent_text, printable

HIGHER_IS_BETTER = frozenset(
    "accuracy acc top1 top5 precision recall f1 auc auroc ap map bleu rouge psnr ssim iou miou dice "
    "r2 score reward return correlation likelihood elbo".split()
)
LOWER_IS_BETTER = frozenset(
    "loss error err bits bpb bpc bpd nll xent entropy perplexity ppl mse mae rmse mape cer wer fid "
    "kl divergence distance ece regret".split()
)
_NO_METRICS = {"step", "samples", "tokens", "epoch", "phase", "batch_size", "learning_rate"}
_TRAIN = "train"


def metric_keys(runs: Sequence[Run]) -> list[str]:
    """The keys of what was measured in any of the runs: train's first, then as they come.

    Counts, positions and seconds aren't among them, nor what isn't a number throughout.
    """
    keys: dict[str, bool] = {}
    for row in (row for run in runs for row in run.rows):
        for key, value in row.items():
            if key not in _NO_METRICS and not key.endswith(("_seconds", "_per_second")):
                is_number = is_figure(value) and not isinstance(value, bool)
                keys[key] = keys.get(key, True) and is_number
    measured = [key for key, has_numbers in keys.items() if has_numbers]
    return sorted(measured, key=lambda key: not is_of_training(key))


def is_of_training(key: str) -> bool:
    """Whether a metric is of the batches that were trained on, else it is of an evaluation."""
    return key.startswith(f"{_TRAIN}_")


def by_quantity(keys: Sequence[str]) -> list[list[str]]:
    """The metrics that evaluations measure alike on different examples together, training's apart.

    >>> by_quantity(["train_loss", "test_loss", "test_bits", "my_set_loss"])
    [['train_loss'], ['test_loss', 'my_set_loss'], ['test_bits']]
    """
    names = {key.partition("_")[2] for key in keys} - {""}
    groups: dict[str, list[str]] = {}
    for key in keys:
        same = [name for name in names if key.endswith(f"_{name}")]
        name = key if is_of_training(key) else min(same, key=len, default=key)
        groups.setdefault(name, []).append(key)
    return list(groups.values())


def title_of(key: str) -> str:
    """A metric's name for people.

    >>> title_of("train_loss"), title_of("test_bits_per_byte")
    ('training loss', 'test bits per byte')
    """
    if is_of_training(key):
        key = f"training_{key.removeprefix('train_')}"
    return printable(key.replace("_", " "))


def is_share(key: str, values: Sequence[float]) -> bool:
    """Whether a metric is an accuracy from 0 to 1, which is drawn as an error in percent."""
    finite = [value for value in values if math.isfinite(value)]
    return key.endswith("accuracy") and all(0 <= value <= 1 for value in finite)


def value_text(key: str, value: float) -> str:
    """A value of a metric for people.

    >>> value_text("test_accuracy", 0.9468), value_text("test_bits", 1.234567)
    ('94.68 %', '1.2346')
    """
    return percent_text(value, 2) if is_share(key, [value]) else f"{value:.5g}"


def words_of(key: str) -> set[str]:
    """What a metric's name is made of, in small letters.

    >>> sorted(words_of("val_top5-Accuracy"))
    ['accuracy', 'top5', 'val']
    """
    return set(re.findall(r"[a-z]+\d*", key.lower()))


def score_of(key: str, config: Mapping[str, Any]) -> Score | None:
    """Which way a metric is better; None where its name doesn't say.

    >>> score_of("test_bits", {}).is_loss, score_of("test_accuracy", {}).is_loss
    (True, False)
    >>> score_of("test_xyz", {}), score_of("test_xyz", {"keep_best": "min test_xyz"}).is_loss
    (None, True)
    """
    try:
        kept = parse_score(str(config.get("keep_best")))
    except UsageError:
        kept = None
    if kept is not None and kept.metric == key:
        return kept
    words = words_of(key)
    if words & HIGHER_IS_BETTER:
        return Score(key, is_loss=False)
    return Score(key, is_loss=True) if words & LOWER_IS_BETTER else None


def best_value(run: Run, key: str) -> float | None:
    """The best that was measured; None where nothing was, or which way is better isn't known."""
    score = score_of(key, run.config)
    if score is None:
        return None
    scored = [(score.of(row), row[key]) for row in run.rows if key in row]
    return max((pair for pair in scored if pair[0] is not None), default=(None, None))[1]


def headline(run: Run) -> list[str]:
    """The metrics that say most about a run: the bits of a text, else the test accuracy, or what it
    keeps its best by, or all that was evaluated; without evaluations what was measured while
    training.
    """
    keys = metric_keys([run])
    evaluated = [key for key in keys if not is_of_training(key)]
    kept = str(run.config.get("keep_best")).split()[-1]
    for key in (*BITS, "test_accuracy", kept):
        if key in evaluated:
            return [key]
    return evaluated[:3] or [key for key in keys if key == "train_loss"]
