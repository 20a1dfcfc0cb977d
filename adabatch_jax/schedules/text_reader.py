"""Reading the little languages of schedules and learning rates, with errors that point."""

import dataclasses
import operator
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from adabatch_jax.system.errors import UsageError

_WORD = re.compile(r"[,:]|[^\s,:]+")


def exact(value: int | float | str | Decimal | Fraction, name: str) -> Fraction:
    """Returns the number that `value` shows when printed, exactly: 0.1 is 1/10.

    >>> exact(0.375, "growth_factor")
    Fraction(3, 8)
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, float):
            value = repr(float(value))
        elif hasattr(value, "dtype"):  # a scalar of numpy or JAX
            value = str(value)
        return Fraction(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, InvalidOperation):
        raise UsageError(f"`{name}` must be a finite number, got {value!r}.") from None


def positive_integer(value: int, name: str) -> int:
    """Returns a whole number of at least 1; the complaint calls it `name`.

    >>> positive_integer(128, "batch_size")
    128
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"`{name}` must be a whole number, got {value!r}.") from None
    if number < 1:
        raise UsageError(f"`{name}` must be at least 1, got {number}.")
    return number


def decimal_text(value: Fraction) -> str:
    """Writes a fraction as a decimal where that is exact, and as `p/q` elsewhere.

    >>> decimal_text(Fraction(3, 8)), decimal_text(Fraction(1, 3))
    ('0.375', '1/3')
    """
    digits, rest = 0, value.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        digits = max(digits, power)
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    scaled = value.numerator * 10**digits // value.denominator
    sign, text = ("-", str(-scaled)) if scaled < 0 else ("", str(scaled))
    if digits == 0:
        return sign + text
    text = text.rjust(digits + 1, "0")
    return f"{sign}{text[:-digits]}.{text[-digits:]}"


@dataclasses.dataclass
class Reader:
    """Walks over the words of a text; every complaint names the place."""

    text: str
    what: str

    def __post_init__(self):
        self._words = [(m.group(), m.start()) for m in _WORD.finditer(self.text)]
        self._next = 0

    @property
    def peek(self) -> str:
        """The next word, `""` at the end."""
        return self._words[self._next][0] if self._next < len(self._words) else ""

    def take(self, expected: str) -> str:
        """Returns the next word and moves on; `expected` says what should stand there."""
        if not self.peek:
            raise self.error(expected)
        self._next += 1
        return self._words[self._next - 1][0]

    def take_if(self, word: str) -> bool:
        """Moves on if the next word is `word`."""
        if self.peek != word:
            return False
        self._next += 1
        return True

    def require(self, word: str) -> None:
        """Moves over `word`, or complains."""
        if not self.take_if(word):
            raise self.error(f"{word!r}")

    def finish(self, expected: str = "nothing more") -> None:
        """Complains about anything that is left."""
        if self.peek:
            raise self.error(expected)

    def number(self, expected: str, prefix: str = "") -> Fraction:
        """Reads a number within a float's range, a decimal or `p/q`, behind `prefix`."""
        if not re.fullmatch(
            re.escape(prefix) + r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d{1,3})?(/\d+)?", self.peek
        ):
            raise self.error(expected)
        word = self.take(expected)[len(prefix) :]
        try:
            number = Fraction(word)
            float(number)
        except (ValueError, ArithmeticError):
            self._next -= 1
            raise self.error(expected) from None
        return number

    def whole(self, expected: str) -> int:
        """Reads a whole number."""
        if not re.fullmatch(r"[+-]?\d[\d_]*", self.peek):
            raise self.error(expected)
        try:
            return int(self.take(expected))
        except ValueError:  # two underscores, or more digits than Python reads
            self._next -= 1
            raise self.error(expected) from None

    def error(self, expected: str) -> UsageError:
        """Builds the complaint about the next word."""
        if self._next < len(self._words):
            word, start = self._words[self._next]
            place = f"{word!r} (character {start + 1})"
        else:
            place = "its end"
        return UsageError(
            f"can't read the {self.what} {self.text!r} at {place}: expected {expected}."
        )
