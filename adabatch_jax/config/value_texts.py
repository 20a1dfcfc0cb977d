"""What the texts of single settings mean."""

import dataclasses
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from adabatch_jax.system.errors import UsageError


@dataclasses.dataclass(frozen=True)
class NanPolicy:
    """What follows an update whose loss or gradients aren't finite.

    Attributes:
      kind: "stop" ends the run; "skip" leaves the update out; "rollback" takes the weights of the
        newest checkpoint.
      limit: how many updates a run may leave out; None where it leaves out none.
    """

    kind: str
    limit: int | None = None


def parse_nan_policy(text: str) -> NanPolicy:
    """Reads "stop", "skip:N" or "rollback".

    >>> parse_nan_policy("skip:3")
    NanPolicy(kind='skip', limit=3)
    """
    match = re.fullmatch(r"stop|rollback|skip:([1-9]\d{0,17})", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not stop, skip:N (leave out up to N updates) or rollback.")
    return NanPolicy("skip", int(match[1])) if match[1] else NanPolicy(match[0])


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure of the evaluation to choose by: a key of the rows, and whether less is better.

    `otherwise` is what a row is judged by that hasn't the figure.
    """

    metric: str
    is_loss: bool
    otherwise: "Score | None" = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that it may go by, the one that is preferred first."""
        return (self.metric, *(self.otherwise.metrics if self.otherwise else ()))

    def of(self, row: Mapping[str, Any]) -> float | None:
        """The row's score, larger is better; None where it has none that is finite.

        >>> parse_score("min test_loss").of({"step": 9, "test_loss": 0.25})
        -0.25
        """
        value = row.get(self.metric)
        if value is None and self.otherwise is not None:
            return self.otherwise.of(row)
        if value is None or not math.isfinite(value):
            return None  # NaN would compare as the best, or as nothing
        return -float(value) if self.is_loss else float(value)


BY_WHAT_IS_MEASURED = "auto"
# Of tokens, whose accuracy is measured too, the bits are the loss.
_MEASURED = Score(
    "test_bits_per_token", True, Score("test_accuracy", False, Score("test_loss", True))
)


def parse_score(text: str) -> Score:
    """Reads "max test_accuracy", "min test_loss", or "auto".

    That is the loss of a text, the accuracy of anything else, and where there is none its loss.

    >>> parse_score("auto").of({"test_bits_per_token": 2.0, "test_accuracy": 0.5})
    -2.0
    >>> parse_score("auto").of({"test_loss": 2.0}), parse_score("auto").of({"test_accuracy": 0.5})
    (-2.0, 0.5)
    """
    if text.strip() == BY_WHAT_IS_MEASURED:
        return _MEASURED
    match = re.fullmatch(r"(max|min)\s+(\S+)", text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no score, write it as 'max test_accuracy', or auto.")
    return Score(match[2], match[1] == "min")


def parse_profiled(text: str) -> tuple[int, int]:
    """Reads a range of updates such as "10:20", the second one excluded."""
    start, _, stop = text.partition(":")
    if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
        raise UsageError(
            f"{text!r} is no range of updates, the first and the one behind the last; write it "
            "as '10:20'."
        )
    return int(start), int(stop)


def check_name(name: str) -> None:
    """Raises a UsageError unless a folder may be called so on any system."""
    if not re.fullmatch(r"[\w][\w.+=-]*", name):
        raise UsageError(f"{name!r} can't be a folder's name; use letters, digits, '_' and '-'.")


# A dataset's text that can only be a path, whatever lies there.
_PATH = re.compile(r"(\.{0,2}|~[^/]*)(/.*)?|.*\.(npz|csv|parquet)", re.DOTALL | re.IGNORECASE)


def is_path(dataset: str) -> bool:
    """Whether a dataset's text can only be a path; a folder's plain name may be one too.

    >>> is_path("./photos"), is_path("photos.npz"), is_path("photos"), is_path("mnist:3.0.1")
    (True, True, False, False)
    """
    return bool(dataset) and not is_text(dataset) and _PATH.fullmatch(dataset) is not None


_TEXT = "text:"


def is_text(dataset: str) -> bool:
    """Whether a dataset's text names a text to train a language model on.

    >>> is_text("text:corpus.txt"), is_text("corpus.txt")
    (True, False)
    """
    return dataset.startswith(_TEXT)


def text_path(dataset: str) -> str:
    """The file, folder or name of a text.

    >>> text_path("text:./corpus.txt")
    './corpus.txt'
    """
    return dataset.removeprefix(_TEXT)


def check_dataset(text: str) -> None:
    """Raises a UsageError where a text names neither a dataset nor a path nor a function."""
    if not text_path(text) or "\0" in text:
        raise UsageError(f"{text!r} is neither a dataset's name nor a path nor module:function.")


def folder_name(text: str) -> str:
    """What a run's folder calls a dataset or a network.

    >>> folder_name("~/own/photos/"), folder_name("cifar10_corrupted/fog_1:1.0.0")
    ('photos', 'cifar10_corrupted_fog_1_1.0.0')
    """
    text = text_path(text)
    last = text.rstrip("/").rpartition("/")[2] if is_path(text) else text
    return re.sub(r"[^\w.+=-]", "_", last).lstrip(".+=-") or "data"


def parse_share(text: str) -> Fraction:
    """Reads a share such as "20%", as a number between 0 and 1.

    >>> parse_share("12.5%")
    Fraction(1, 8)
    """
    match = re.fullmatch(r"(\d{1,2}(?:\.\d{1,6})?)\s*%", text.strip())
    if match is None or not float(match[1]):
        raise UsageError(f"{text!r} is no share of the examples, write it as '20%'.")
    return Fraction(match[1]) / 100


def is_share(text: str) -> bool:
    """Whether a split's text says how much to take, and not which."""
    return text.strip().endswith("%")


def check_split(text: str) -> None:
    """Raises a UsageError where the text of a split begins like a share and is none."""
    if is_share(text):
        parse_share(text)


def parse_channels(text: str) -> tuple[float, ...]:
    """Reads a number, or one per channel, such as "0.485 0.456 0.406".

    >>> parse_channels("0.485, 0.456, 0.406")
    (0.485, 0.456, 0.406)
    """
    try:
        values = tuple(float(word) for word in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise UsageError(f"{text!r} is not a number per channel, write it as '0.49 0.48 0.45'.")
    return values


def parse_deviations(text: str) -> tuple[float, ...]:
    """Reads numbers as `parse_channels` does, which must be above 0."""
    values = parse_channels(text)
    if min(values) <= 0:
        raise UsageError(f"{text!r} must be above 0, images are divided by it.")
    return values


def check_path(path: str) -> None:
    """Raises a UsageError where no file can have this path."""
    if "\0" in path:
        raise UsageError(f"{path!r} can't be a file's name.")
