"""Rules to stop by, as texts: read, written and refused."""

import pytest

from adabatch_jax.config import TrainConfig
from adabatch_jax.config.stop_rules import parse_stop_rules
from adabatch_jax.system.errors import UsageError


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("test_accuracy>=0.99", ["test_accuracy >= 0.99"]),
        ("test_accuracy >= 99 %".replace(" %", "%"), ["test_accuracy >= 0.99"]),
        ("train_loss <  1e-3  or test_loss > 5", ["train_loss < 0.001", "test_loss > 5"]),
        ("no lower test_bits for 30%", ["no lower test_bits for 30%"]),
        ("no better  result for 5ep", ["no better result for 5ep"]),
    ],
)
def test_what_is_read_is_written_back(text, written):
    rules = parse_stop_rules(text)
    assert [str(rule) for rule in rules] == written
    assert parse_stop_rules(" or ".join(written)) == rules


@pytest.mark.parametrize(
    ("sign", "met"),
    [(">=", [0, 1, 1]), (">", [0, 0, 1]), ("<=", [1, 1, 0]), ("<", [1, 0, 0])],
)
def test_comparisons_at_the_value(sign, met):
    (rule,) = parse_stop_rules(f"x {sign} 0.5")
    assert [rule.is_met({"x": value}) for value in (0.4999, 0.5, 0.5001)] == [*map(bool, met)]
    assert not any(rule.is_met({"x": value}) for value in (None, float("nan")))
    assert not rule.is_met({})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test_accuracy = 0.9", "is no rule to stop by; write it as"),
        ("test_accuracy >= high", "is no rule to stop by"),
        ("test_loss < nan", "is no rule to stop by"),
        ("", "is no rule to stop by"),
        ("test_accuracy >= 99", "never met: accuracies are at most 1; write 0.99 or 99%"),
        ("no lower test_loss for 5", "has no unit"),
        ("no lower test_loss for 0ep", "must be longer than nothing"),
    ],
)
def test_what_cannot_be_meant(text, said):
    with pytest.raises(UsageError, match=said) as error:
        TrainConfig(stop_when=text)
    assert str(error.value).startswith("stop_when: ")


def test_the_rule_of_settings_and_their_digest():
    plain = TrainConfig()
    assert plain.stop_rule is None
    both = TrainConfig(stop_when="test_loss < 0.1", patience="5ep", keep_best="min test_bits")
    assert both.stop_rule == "test_loss < 0.1 or no lower test_bits for 5ep"
    assert TrainConfig(patience="5ep").stop_rule == "no better result for 5ep"
    assert TrainConfig(patience="5ep", keep_best=None).stop_rule == "no lower test_loss for 5ep"
    # Runs of before there were rules keep their names.
    content = plain.to_dict()
    del content["stop_when"], content["patience"]
    assert plain.digest == TrainConfig.from_dict(content).digest != both.digest
    assert plain.digest[:8] == "2c2779cc"
