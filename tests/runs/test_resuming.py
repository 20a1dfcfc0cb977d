"""Plans of runs that go on: prolonged again and again, or with changed settings."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.runs import resuming
from adabatch_jax.runs.resuming import plan_of_run
from adabatch_jax.system.errors import RestoreError, UsageError
from tests.run_folders import found_checkpoint
from tests.sentences import says

N = 100
BEGUN = TrainConfig(batch_schedule="10, 1ep: 20", lr="0.1 x0.5 every 1ep", epochs=3)
WORKDIR = Path("runs/x")


def begun(config=BEGUN, step=12, plan=None):
    """A checkpoint of this configuration."""
    return found_checkpoint(config, plan or config.plan(N), step, WORKDIR)


def planned(config, found=None, allowed=()):
    """The plan, and the changes."""
    return plan_of_run(config, N, found or begun(), WORKDIR, allowed)


@pytest.mark.parametrize("remainder", ["carry", "partial", "drop"])
@pytest.mark.parametrize("schedule", ["7", "4 x2 every 1ep max 32", "30, 35st: 9"])
def test_planned_again_as_it_was_prolonged(schedule, remainder):
    config = TrainConfig(batch_schedule=schedule, lr="0.05", remainder=remainder, epochs=1.3)
    plan = config.plan(N)
    for epochs in (1.3, 1.71, 1.71, 2.5, 4.05, 9):
        longer = dataclasses.replace(config, epochs=epochs)
        prolonged, _ = planned(longer, begun(config, plan.num_steps, plan))
        # What was done stays as it was, and the rest follows the schedule.
        done = list(plan.steps())
        assert list(prolonged.steps())[: len(done)] == done
        assert prolonged.num_samples == round(N * epochs)
        for step in range(0, prolonged.num_steps, 3):
            # Stopped anywhere on the way, it is planned the same again.
            position = prolonged.samples_at(step)
            again, _ = planned(longer, begun(longer, step, prolonged))
            if position >= plan.num_samples:
                assert again.fingerprint() == prolonged.fingerprint()
            assert again.fingerprint(position) == prolonged.fingerprint(position)
        plan, config = prolonged, longer


def sizes(plan):
    return [step.batch_size for step in plan.steps()]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 4.0),
        ("batch_schedule", "10, 1ep: 20, 2ep: 50"),
        ("lr", "0.1, 1ep: 0.05, 2ep: 0.001"),
        ("on_nan", "skip:3"),
    ],
)
def test_another_future_is_followed_and_told(setting, value):
    config = dataclasses.replace(BEGUN, **{setting: value})
    plan, (told,) = planned(config)
    assert plan.to_dict() == config.plan(N).to_dict()
    before = getattr(BEGUN, setting)
    assert re.search(says(f"{setting} … {value} … 12 … {before}"), str(told))
    assert told.to_dict() == {
        "kind": "change", "step": 12, "setting": setting, "from": before, "to": value,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_schedule": "10, 1ep: 25"}, "phase 2 … batch_size 20 … 25"),
        ({"lr": "0.2 x0.5 every 1ep"}, "0.1 and 0.2 at update 0"),
        ({"momentum": 0.8}, "momentum=0.9, not 0.8"),
        ({"weight_decay": 0.1}, "weight_decay=0.0005, not 0.1"),
        ({"batchnorm_group_size": 5}, "batchnorm_group_size=None, not 5"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype='float32', not 'bfloat16'"),
        ({"data": DataSettings(flip=True)}, "data.flip=False, not True"),
    ],
)
def test_another_past_is_refused_and_may_be_left_behind(change, named):
    config = dataclasses.replace(BEGUN, **change)
    setting = "data.flip" if "data" in change else next(iter(change))
    with pytest.raises(RestoreError) as caught:
        planned(config)
    assert re.search(says(f"{named} … --allow-change {setting}."), str(caught.value))
    plan, changes = planned(config, allowed=(setting,))
    assert sizes(plan)[:12] == sizes(BEGUN.plan(N))[:12]
    assert [change.setting for change in changes] == [setting]
    # From the next checkpoint on it is what the run was made with.
    again, changes = planned(config, begun(config, step=13, plan=plan))
    assert again.to_dict() == plan.to_dict() and changes == []


def test_all_that_differs_is_named_at_once():
    config = dataclasses.replace(BEGUN, momentum=0.8, compute_dtype="bfloat16")
    with pytest.raises(RestoreError) as caught:
        planned(config)
    assert str(caught.value) == (  # golden
        "the run in runs/x has momentum=0.9, not 0.8 and compute_dtype='float32', not 'bfloat16'; "
        "use another --workdir, or go on with --config runs/x/config.json, or change them from "
        "here on with --allow-change momentum compute_dtype."
    )
    with pytest.raises(RestoreError, match="--allow-change momentum compute_dtype.$") as caught:
        planned(config, allowed=("momentum",))
    assert "momentum=" not in str(caught.value)
    config = dataclasses.replace(config, lr="0.2", compute_dtype="float32")
    with pytest.raises(RestoreError, match="--allow-change momentum lr.$"):
        planned(config, allowed=("momentum",))
    config = dataclasses.replace(config, seed=1)
    with pytest.raises(RestoreError) as caught:
        planned(config)
    assert "seed=0, not 1" in str(caught.value) and "--allow-change" not in str(caught.value)


def test_a_schedule_that_is_followed_from_here_on_keeps_the_clock():
    config = dataclasses.replace(BEGUN, batch_schedule="10, 1ep: 25")
    plan, _ = planned(config, allowed=("batch_schedule",))
    # Twelve updates of the old schedule stand at sample 140; the new one has 25 from there on.
    assert sizes(plan) == [10] * 10 + [20] * 2 + [25] * 7
    assert plan.num_samples == 300 and list(plan.steps())[-1].num_real == 10


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "cnn_fashion"}, "model='cnn_digits', not 'cnn_fashion'"),
        ({"seed": 1}, "seed=0, not 1"),
        ({"optimizer": "adamw"}, "optimizer='sgd', not 'adamw'"),
        ({"remainder": "drop"}, "remainder='carry', not 'drop'"),
    ],
)
def test_what_a_run_is_cannot_change(change, named):
    config = dataclasses.replace(BEGUN, **change)
    with pytest.raises(RestoreError) as caught:
        planned(config)
    assert named in str(caught.value) and "--allow-change" not in str(caught.value)
    with pytest.raises(UsageError, match=f"--allow-change: .*{next(iter(change))}"):
        planned(config, allowed=tuple(change))


def test_another_dataset_is_another_run_even_where_other_contents_may_be():
    config = dataclasses.replace(BEGUN, dataset="mnist")
    for allowed in ((), ("dataset",)):
        with pytest.raises(RestoreError, match="dataset='digits', not 'mnist'") as caught:
            planned(config, allowed=allowed)
        assert "--allow-change" not in str(caught.value)


@pytest.mark.parametrize("name", ["row", "foo"])
def test_what_may_be_allowed_is_listed_and_rows_are_among_it(name):
    with pytest.raises(UsageError, match=r"^--allow-change: .*, rows") as caught:
        planned(BEGUN, allowed=(name,))
    assert ("did you mean" in str(caught.value)) == (name == "row")


@pytest.mark.parametrize("epochs", [2, 2.5])
def test_the_end_asks_for_no_order_but_the_last_and_a_longer_run_goes_on(epochs, monkeypatch):
    asked, digest = [], resuming.order_digest
    monkeypatch.setattr(resuming, "order_digest", lambda *of: asked.append(of[2]) or digest(*of))
    config = dataclasses.replace(BEGUN, epochs=epochs)
    found = begun(config, config.plan(N).num_steps)
    planned(dataclasses.replace(config, epochs=4), found)
    assert set(asked) == {math.ceil(epochs) - 1}
    found.run["order_digest"] = "another"
    with pytest.raises(RestoreError, match="in another order"):
        planned(dataclasses.replace(config, epochs=4), found)


def test_a_run_shorter_than_what_was_done_has_no_override():
    with pytest.raises(RestoreError, match=says("sample 140 … 300 … 2 … 100 in 1")) as caught:
        planned(dataclasses.replace(BEGUN, epochs=1))
    assert "--allow-change" not in str(caught.value)


@pytest.mark.parametrize("allowed", [(), ("momentum",)])
def test_momentum_is_no_part_of_a_state_without_any(allowed):
    """So what has none can't be given some, nor the other way round."""
    config = dataclasses.replace(BEGUN, momentum=0.0)
    with pytest.raises(RestoreError, match="momentum=0.9, not 0.0") as caught:
        planned(config, allowed=allowed)
    assert "--allow-change" not in str(caught.value)


@pytest.mark.parametrize(
    ("lr", "change", "named"),
    [
        ("0.1", {"reference_batch_size": 20}, "reference_batch_size=None, not 20"),
        ("0.1 cosine", {"epochs": 4}, "epochs=3.0, not 4.0"),
    ],
)
def test_what_changed_the_rates_is_named(lr, change, named):
    first = dataclasses.replace(BEGUN, lr=lr)
    with pytest.raises(RestoreError, match=f"{named}.* learning rate"):
        planned(dataclasses.replace(first, **change), begun(first))


def test_another_order_of_the_examples_is_noticed():
    found = begun()
    found.run["order_digest"] = "0" * 64
    found.run["numerics"] = {"adabatch_jax": "0.1.0", "numpy": "2.0.0"}
    with pytest.raises(RestoreError) as caught:
        planned(BEGUN, found)
    assert str(caught.value) == (  # golden
        "the examples of the run in runs/x were in another order than this program's (it was begun "
        "with adabatch_jax 0.1.0 and numpy 2.0.0); go on with those versions."
    )
