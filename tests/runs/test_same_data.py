"""A run goes on with the examples that it was trained on so far, and with no others unasked."""

import dataclasses
import re

import numpy as np
import pytest

from adabatch_jax.data.datasets.known_datasets import TextSpec
from adabatch_jax.data.sources import array_source, in_memory
from adabatch_jax.runs.same_data import check_tokenizer
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import RestoreError, UsageError
from tests.run_folders import content
from tests.runs import small_run
from tests.runs.small_run import TEST, TRAIN, N, X, Y, reproducible

PLAN = make_plan("6, 2ep: 12", N, "4ep")
CHANGES = {
    "reversed": {"x": X[::-1], "y": Y[::-1]},
    "other labels": {"x": X, "y": 1 - Y},
    "one label": {"x": X, "y": np.where(np.arange(N) == 17, 1 - Y, Y)},
    "one value": {"x": X + np.where(np.arange(N) == 17, 1e-6, 0.0).astype(np.float32)[:, None]},
    "another type": {"x": X, "y": Y.astype(np.int64)},
}
CHANGES["one value"]["y"] = Y


def train(workdir, source=TRAIN, stop=None, **kwargs):
    on_step = None if stop is None else lambda step, state, metrics: step >= stop
    return small_run.train(PLAN, workdir, source=source, on_step=on_step, **kwargs)


@pytest.fixture(scope="module")
def whole():
    return train(None)


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that was stopped after update 15 of 30."""
    train(tmp_path / "run", stop=15)
    return tmp_path / "run"


def assert_is_whole(result, whole):
    assert reproducible(result.history) == reproducible(whole.history)
    assert result.summary["weights_digest"] == whole.summary["weights_digest"]


@pytest.mark.parametrize("change", CHANGES)
def test_others_are_refused_by_name(stopped, whole, change):
    before, source = content(stopped), array_source(CHANGES[change])
    for _ in range(2):
        with pytest.raises(RestoreError, match="other training examples .*allow-change dataset.$"):
            train(stopped, source)
    assert content(stopped) == before
    assert_is_whole(train(stopped), whole)


def test_with_leave_they_are_followed_from_there_on(stopped, whole):
    source = array_source(CHANGES["other labels"])
    train(stopped, source, stop=20, allow_change=("dataset",))
    # From the next checkpoint on they are the run's, and those before are others.
    with pytest.raises(RestoreError, match="other training examples"):
        train(stopped)
    result = train(stopped, source)
    (decision,) = result.summary["decisions"]
    assert (decision["kind"], decision["step"], decision["setting"]) == ("change", 15, "dataset")
    (before,), (now,) = decision["from"].values(), decision["to"].values()
    assert before == [TRAIN.digest()] and now == [source.digest()]
    rows = reproducible(result.history)
    assert (
        rows[:3] == reproducible(whole.history)[:3] and rows[-1] != reproducible(whole.history)[-1]
    )


def test_a_finished_run_is_compared_too(tmp_path, whole):
    assert_is_whole(train(tmp_path), whole)
    before = content(tmp_path)
    with pytest.raises(RestoreError, match="other training examples"):
        train(tmp_path, array_source(CHANGES["reversed"]))
    assert content(tmp_path) == before
    assert_is_whole(train(tmp_path), whole)


def test_the_examples_of_an_evaluation_too(stopped, whole):
    other = array_source({"x": X[:17], "y": 1 - Y[:17]})
    with pytest.raises(RestoreError, match="other examples of 'test' "):
        train(stopped, eval_source=other)
    with pytest.raises(RestoreError, match="training examples .* and other examples of 'test' "):
        train(stopped, array_source(CHANGES["reversed"]), eval_source=other)
    # What was never evaluated on is compared with nothing.
    result = train(stopped, eval_source={"test": TEST, "more": other})
    assert result.summary["weights_digest"] == whole.summary["weights_digest"]


class Streamed:
    """A source of a user, which may tell what it holds."""

    def __init__(self, digest):
        self.digest = lambda: digest

    def __len__(self):
        return N

    def read(self, indices):
        return TRAIN.read(indices)


def test_a_users_own_digest_is_believed(tmp_path, whole):
    train(tmp_path, Streamed("v1"), stop=15)
    with pytest.raises(RestoreError, match=re.escape("(digest v1, not v2)")):
        train(tmp_path, Streamed("v2"))
    train(tmp_path, Streamed(None), stop=18)  # without one nothing is compared, nor forgotten
    with pytest.raises(RestoreError, match=re.escape("(digest v1, not v2)")):
        train(tmp_path, Streamed("v2"))
    assert_is_whole(train(tmp_path, Streamed("v1")), whole)


def test_streamed_and_in_memory_in_turns(tmp_path, whole):
    train(tmp_path, Streamed("v1"), stop=9)
    train(tmp_path, in_memory(Streamed("v1")), stop=15)
    train(tmp_path, array_source({"x": X.copy(order="F"), "y": Y}), stop=20)
    assert_is_whole(train(tmp_path, Streamed("v1")), whole)


def test_what_is_no_digest_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="`digest\\(\\)` of Streamed must return"):
        train(tmp_path, Streamed(3))
    assert content(tmp_path) == {}


def test_in_memory_nothing_is_asked_for():
    def digest():
        raise AssertionError("nothing is compared")

    source = Streamed(None)
    source.digest = digest
    train(None, source, stop=1)


@pytest.mark.parametrize(
    ("before", "now", "is_same"),
    [
        (None, None, True),
        (TextSpec(8, "bytes"), TextSpec(8, "bytes"), True),
        (TextSpec(8, "a/t.json", "17"), TextSpec(8, "b/t.json", "17"), True),
        (TextSpec(8), TextSpec(8, "t.json", "17"), True),  # tokens, of which nobody told before
        (TextSpec(8, "t.json", "17"), TextSpec(8, "t.json", "18"), False),
        (TextSpec(8, "t.json", "17"), TextSpec(8, "bytes"), False),
        (TextSpec(8, "bytes"), TextSpec(8), False),
    ],
)
def test_a_text_goes_on_with_its_tokenizer(tmp_path, before, now, is_same):
    dataset = None if before is None else {"text": dataclasses.asdict(before)}
    if is_same:
        check_tokenizer({"dataset": dataset}, now, tmp_path)
        return
    with pytest.raises(RestoreError, match=f"begun with the tokenizer {before.tokenizer}, and "):
        check_tokenizer({"dataset": dataset}, now, tmp_path)
