"""Reading the little languages of schedules and learning rates, with errors that point."""

import operator
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from adabatch_jax.system.errors import UsageError

_WORD = re.compile(r"[,:()]|[^\s,:()]+")
_WHOLE = re.compile(r"[+-]?\d[\d_]*")
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d{1,3})?(/\d+)?")


def exact(value: int | float | str | Decimal | Fraction, name: str) -> Fraction:
    """Returns the number that `value` shows when printed, exactly.

    >>> exact(0.1, "growth_factor")
    Fraction(1, 10)
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
    """Returns a whole number of at least 1; errors call it `name`."""
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


def excerpt(text: str, place: int = 0, length: int = 200) -> str:
    """Returns a text for an error to quote: of a long one, what lies around a place.

    >>> excerpt("128, 20ep: 256, 40ep: 512", place=16, length=11)
    '...256, 40ep: ...'
    """
    start = min(max(place - length // 2, 0), max(len(text) - length, 0))
    stop = start + length
    return "..." * (start > 0) + text[start:stop] + "..." * (stop < len(text))


class Reader:
    """Walks over the words of a text; complaints call it `what` and name the word's place.

    Words that were looked for at a place and weren't there are what would have fitted there.
    """

    def __init__(self, text: str, what: str):
        self.text, self.what, self.place = text, what, 0
        self._missed: list[tuple[int, str]] = []
        self._words = [(m.group(), m.start()) for m in _WORD.finditer(text)]

    @property
    def peek(self) -> str:
        """The next word, `""` at the end."""
        return self._words[self.place][0] if self.place < len(self._words) else ""

    def take(self, expected: str) -> str:
        """Returns the next word, which should be what is `expected`, and moves on."""
        if not self.peek:
            raise self.error(expected)
        self.place += 1
        return self._words[self.place - 1][0]

    def take_if(self, word: str) -> bool:
        """Moves on if the next word is `word`."""
        if self.sees(self.peek == word, repr(word)):
            self.place += 1
            return True
        return False

    def sees(self, is_there: bool, expected: str) -> bool:
        """Returns `is_there`; if it isn't, what is `expected` would have fitted here too."""
        if not is_there:
            self._missed.append((self.place, expected))
        return is_there

    def misfit(self, *others: str) -> UsageError:
        """Makes the complaint that the next word is none of those looked for here, nor others."""
        missed = [name for place, name in self._missed if place == self.place]
        *first, last = [*missed, *others]
        return self.error(f"{', '.join(first)} or {last}" if first else last)

    def require(self, word: str) -> None:
        """Moves over a word; raises a UsageError if it is not `word`."""
        if not self.take_if(word):
            raise self.error(f"{word!r}")

    def finish(self, expected: str = "nothing more") -> None:
        """Raises a UsageError if anything is left."""
        if self.peek:
            raise self.misfit(expected)

    def number(self, expected: str, prefix: str = "") -> Fraction:
        """Reads a decimal or `p/q` behind `prefix`, in a float's range."""
        place = self.place
        word = self.take(expected)
        if not word.startswith(prefix) or not _NUMBER.fullmatch(word, len(prefix)):
            raise self.error(expected, place)
        try:
            number = Fraction(word[len(prefix) :])
            float(number)
        except (ValueError, ArithmeticError):
            raise self.error(expected, place) from None
        return number

    def whole(self, expected: str) -> int:
        """Reads a whole number."""
        place = self.place
        word = self.take(expected)
        try:
            if _WHOLE.fullmatch(word):
                return int(word)
        except ValueError:  # two underscores, or more digits than Python reads
            pass
        raise self.error(expected, place)

    def error(self, expected: str, place: int | None = None) -> UsageError:
        """Makes the complaint about the next word, or the one at an earlier place."""
        place = self.place if place is None else place
        where, start = "its end", len(self.text)
        if place < len(self._words):
            word, start = self._words[place]
            where = f"{word!r} (character {start + 1})"
        return UsageError(
            f"can't read the {self.what} {excerpt(self.text, start)!r} at {where}: "
            f"expected {expected}."
        )
