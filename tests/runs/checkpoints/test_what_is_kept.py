"""Which checkpoints stay when another is saved, and what a kill in between leaves."""

import shutil

import pytest

from adabatch_jax import make_plan
from adabatch_jax.config.value_texts import parse_score
from adabatch_jax.runs.checkpoints import checkpoints as checkpoints_module
from adabatch_jax.runs.checkpoints import deleting_old
from adabatch_jax.runs.checkpoints.verifying import (
    check_checkpoint,
    committed_steps,
    newest_good,
    read_run,
)
from adabatch_jax.schedules.periods import every
from tests.runs.checkpoints.conftest import Said, bits, names, opened, plain_state, restored


def test_the_newest_and_the_best_stay(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: float("nan"), 4: None, 5: 0.2, 6: 0.1}
    best = parse_score("max test_accuracy")
    with opened(tmp_path, best=best) as checkpoints:
        for step, score in scores.items():
            if score is not None:
                checkpoints.measured({"step": step, "test_accuracy": score})
            checkpoints.save(step, plain_state(), {})
            checkpoints.wait()
            if step == 4:
                assert committed_steps(tmp_path) == [2, 3, 4]
    assert committed_steps(tmp_path) == [2, 5, 6]
    with opened(tmp_path, best=best) as checkpoints:  # the scores are on disk
        (tmp_path / "5/manifest").unlink()  # counts no more, and isn't ours to delete
        checkpoints.measured({"step": 7, "test_accuracy": 1.0})
        checkpoints.save(7, plain_state(), {})
    assert committed_steps(tmp_path) == [5, 6, 7]
    with opened(tmp_path, newest=1, best=best) as checkpoints:
        for step, score in ((8, 0.3), (9, 2.0), (10, 0.4), (11, 0.5)):
            checkpoints.save(step, plain_state(), {})
            # What is known only after it was saved.
            checkpoints.measured({"step": step, "test_accuracy": score})
    assert committed_steps(tmp_path) == [5, 9, 11]


@pytest.mark.parametrize(
    ("figures", "kept"),
    [("test_loss test_accuracy", [2, 5]), ("test_loss", [3, 5]),
     ("test_loss test_accuracy test_bits_per_token", [3, 5])],
)  # fmt: skip
def test_the_best_is_by_the_accuracy_or_of_tokens_by_the_loss(tmp_path, figures, kept):
    with opened(tmp_path, newest=1, best=parse_score("auto")) as checkpoints:
        for step, accuracy, loss in ((1, 0.5, 3.0), (2, 0.9, 2.0), (3, 0.8, 1.0), (5, 0.7, 4.0)):
            row = {"test_loss": loss, "test_accuracy": accuracy, "test_bits_per_token": 1.44 * loss}
            checkpoints.measured({"step": step} | {name: row[name] for name in figures.split()})
            checkpoints.save(step, plain_state(), {})
    assert committed_steps(tmp_path) == kept


def test_one_of_each_period_stays(tmp_path):
    plan = make_plan("10", num_examples=100, duration="3ep")
    with opened(tmp_path, newest=1, every=every(plan, "1ep")) as checkpoints:
        for step in (4, 8, 12, 16, 20, 24, 28):
            checkpoints.save(step, plain_state(), {})
    assert committed_steps(tmp_path) == [12, 20, 28]
    assert [read_run(tmp_path / str(step))["keep"] for step in (12, 20, 28)] == [True, True, False]


def test_what_is_not_measured_is_told_once(tmp_path):
    said = Said()
    with opened(tmp_path, best=parse_score("max test_f1"), progress=said) as checkpoints:
        for step in (1, 2):
            checkpoints.measured({"step": step, "train_loss": 0.5})
            checkpoints.measured({"step": step, "test_accuracy": 0.5})
    (message,) = said.messages
    assert message.startswith("warning: ") and "test_f1" in message


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", ["gc.before", "gc.mid", "save.committed"])
def test_a_kill_while_old_ones_are_removed(two_saved, tmp_path, monkeypatch, point):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)

    def killed(reached):
        if reached == point:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        for module in (deleting_old, checkpoints_module):
            patched.setattr(module, "reach", killed)
        with opened(directory, 1) as checkpoints:
            checkpoints.save(9, plain_state(9), {})
    for step in committed_steps(directory):
        assert check_checkpoint(directory / str(step))
    assert bits(restored(directory, 9)) == bits(plain_state(9))
    with opened(directory, 1) as checkpoints:
        assert not [name for name in names(directory) if name.startswith(".")]
        checkpoints.save(10, plain_state(10), {})
    assert names(directory) == ["10"]


def test_what_a_kill_left_of_a_save_goes(two_saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    for name in ("8.orbax-checkpoint-tmp-0", "9.orbax-checkpoint-tmp"):
        shutil.copytree(two_saved / "7", directory / name)
    assert newest_good(directory)[0].step == 7
    with opened(directory):
        assert names(directory) == ["3", "7"]
