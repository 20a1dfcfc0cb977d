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
        "0.1 cosine to 0.01",
        "0.1 sqrt warmup 1ep",
        "0.1 linear to 0.001 over 80%",
        "0.1 cosine to 0.01 until 410Btok warmup 375Mtok",
        "0.1 rsqrt scale 10000st",
        "0.00005 warmup 100st then cosine to 0.000001",
        "0.0003 warmup 2000st from 0.0001 then constant then linear to 0 over the last 20%",
        "0.01 warmup 10Kst then rsqrt then sqrt to 0.001 over the last 1/10 of the run",
        "0.1 constant over 1/3 then x0.5 every 5ep until 2/3 then 0.01 then 0.02 cosine over the "
        "last 10%",
        "0.1 warmup 1ep then 0.2 over 5ep then x0.1 every 1ep",
        "0.1, 30ep: 0.01 warmup 5ep times 1, 1/3 of the run: 1.52, 2/3: 1.73",
        "0.1 times 2",
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
        (
            "0.1 warmup 5ep cosine",
            "'cosine' .character 16.: expected 'from', 'then', 'times' or not",
        ),
        (
            "0.1 cosine linear to 0",
            "'linear' .character 12.: expected 'to', 'over', 'until', 'then', 'warmup', 'times' or "
            "nothing more",
        ),
        ("0.1 cosin", "at 'cosin' .character 5.: expected ', 30ep: ...', 'x0.1 every ...', 'const"),
        ("0.1 cosine warmup 1ep then constant", "'then' .character 23.: expected 'from', 'times'"),
        ("0.1 constant then cosine", "'then' .character 14.: expected 'over ...' or 'until ...' "),
        ("0.1 constant then", "at its end: expected a rate, 'x0.1 every ...', 'constant', 'line"),
        ("0.1 cosine over the last 5ep then 1", "'then' .character 30.: expected 'warmup'"),
        ("0.1 cosine over the end", "'end' .character 21.: expected 'last'"),
        ("0.1 cosine over 30", "'30' .character 17.*has no unit"),
        ("0.1 cosine over 1/3 of run", "'run' .character 24.: expected 'the'"),
        ("0.1 cosine over 4/3", "'4/3' .character 17.*has no unit"),
        ("0.1 rsqrt", "at its end: expected 'scale'"),
        ("0.1 cosine to -1", "'-1' .character 15.: expected a learning rate that is not"),
        ("0.1 times 1, 5ep: -1", "'-1' .character 19.: expected a factor that is not negative"),
        ("0.1 times", "at its end: expected a factor such as 1"),
    ],
)
def test_mistakes_are_pointed_at(text, message):
    with pytest.raises(UsageError, match=message):
        parse_learning_rate(text)
