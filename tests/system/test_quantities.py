"""Spans of time."""

import datetime

import pytest

from adabatch_jax.system.errors import UsageError
from adabatch_jax.system.quantities import parse_seconds


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", {"seconds": 90}),
        ("0.5s", {"seconds": 0.5}),
        ("3h50m", {"hours": 3, "minutes": 50}),
        (" 3H 50M ", {"hours": 3, "minutes": 50}),
        ("1d2h", {"days": 1, "hours": 2}),
        ("1d2h3m4.25s", {"days": 1, "hours": 2, "minutes": 3, "seconds": 4.25}),
        ("1.5h", {"minutes": 90}),
        ("0h5m", {"minutes": 5}),
        ("3:50:00", {"hours": 3, "minutes": 50}),
        ("0:00:59.5", {"seconds": 59.5}),
        ("100:59:59", {"hours": 100, "minutes": 59, "seconds": 59}),
    ],
)
def test_spans(text, span):
    assert parse_seconds(text) == datetime.timedelta(**span).total_seconds()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90", "'90' has no unit; write it as '3h50m'"),
        ("1.5", "'1.5' has no unit"),
        ("", "'' is no span of time"),
        ("m", "'m' is no span"),
        ("50m3h", "'50m3h' is no span"),
        ("3h3h", "'3h3h' is no span"),
        ("3h50", "'3h50' is no span"),
        ("3:50", "'3:50' is no span"),  # hours and minutes, or minutes and seconds?
        ("3:60:00", "'3:60:00' is no span"),
        ("-3h", "'-3h' is no span"),
        ("2weeks", "'2weeks' is no span"),
        ("nan", "'nan' is no span"),
        ("0s", "'0s' must be longer than nothing"),
        ("0:00:00", "must be longer than nothing"),
        (f"{'9' * 400}s", "must be longer than nothing, and finite"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UsageError) as caught:
        parse_seconds(text)
    assert message in str(caught.value)
