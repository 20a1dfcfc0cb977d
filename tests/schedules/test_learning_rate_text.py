"""The text form of learning rates."""

import pytest

from adabatch_jax.schedules.learning_rate_text import parse_learning_rate
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize(
    "text",
    [
        "0.1",
        "0.1 x0.375 every 20ep",
        "0.1, 30ep: 0.01, 60ep: 0.001",
        "0.1 cosine",
        "0.1 linear to 0.001",
        "0.1 warmup 5ep",
        "0.1 x0.25 every 20ep warmup 5ep from 0.1",
        "0.1 cosine warmup 500st",
        "3 x1.5 every 10% warmup 2.5Msp from 0.025",
    ],
)
def test_texts_both_ways(text):
    rate = parse_learning_rate(text)
    assert str(rate) == text
    assert parse_learning_rate(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at its end: expected a learning rate such as 0.1"),
        ("fast", "at 'fast' .character 1."),
        ("-0.1", "expected a learning rate that is not negative"),
        ("0.1 x0 every 20ep", "'x0' .character 5.: expected a decay above 0"),
        ("0.1 x0.5 each 20ep", "'each' .character 10.: expected 'every'"),
        ("0.1 x0.5 every 0ep", "at '0ep'"),
        ("0.1 x0.5 every 20epoch", "'20epoch'.*did you mean 'ep'"),
        ("0.1, 30ep 0.01", "'0.01' .character 11.: expected ':'"),
        ("0.1 linear 0.001", "expected 'to'"),
        ("0.1 warmup", "at its end: expected a duration"),
        ("0.1 warmup 5ep from", "at its end: expected a learning rate"),
        ("0.1 warmup 5ep cosine", "'cosine' .character 16.: expected nothing more"),
        ("0.1 cosine linear to 0", "expected 'warmup ...' or nothing more"),
        ("0.1 cosin", "at 'cosin' .character 5.: expected 'x0.1 every ...'"),
    ],
)
def test_mistakes_are_pointed_at(text, message):
    with pytest.raises(UsageError, match=message):
        parse_learning_rate(text)
