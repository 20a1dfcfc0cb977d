"""What trackers are told, whatever happens to the run; and that none of them can end it."""

import pytest

from adabatch_jax.config import settings
from adabatch_jax.config.settings import Operation
from adabatch_jax.runs.tracking import trackers
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from tests.runs import small_run

PLAN = make_plan(4, small_run.N, "14st")
OPTIONS = {"log_every": "1st", "checkpoint_every": "4st", "eval_fn": None, "eval_source": None}


class Notes:
    """Keeps what it is told, without rows that come again."""

    def __init__(self, failing=None):
        self.told, self.steps, self._failing = [], [], failing

    def _tell(self, event, what):
        self.told.append((event, what))
        if event == self._failing:
            raise ConnectionError(f"no network at {event}\nand a long story")

    def start(self, run):
        self.steps = [step for step in self.steps if step < run.first_step]
        self._tell("start", run)

    def row(self, row):
        self.steps.append(row["step"])
        self._tell("row", row)

    def finish(self, summary):
        self._tell("finish", summary)


def fit(workdir, *given, **options):
    operation = Operation(trackers=given)
    return small_run.train(PLAN, workdir, operation=operation, **{**OPTIONS, **options})


def test_a_run_is_one_run_over_its_restarts(tmp_path, faults):
    notes = Notes()
    for update in (7, 6, 3):  # 7, 10 and 11; checkpoints at 4 and 8
        faults(f"step.end:{update}:raise")
        with pytest.raises(Exception, match="step.end"):
            fit(tmp_path, notes)
    faults("")
    result = fit(tmp_path, notes, identity={"lr": 0.05})
    starts = [run for event, run in notes.told if event == "start"]
    assert [run.first_step for run in starts] == [0, 5, 9, 9]
    assert [run.last_row and run.last_row["step"] for run in starts] == [None, 4, 8, 8]
    assert len({run.id for run in starts}) == 1 and starts[-1].settings == {"lr": 0.05}
    assert notes.steps == list(range(1, 15))
    assert [what for event, what in notes.told if event == "finish"] == [
        None, None, None, result.summary,
    ]  # fmt: skip
    rows = [what for event, what in notes.told if event == "row"][-6:]
    assert rows == result.history[-6:]


def test_a_stopped_run_is_not_finished_and_a_finished_one_is_left_alone(tmp_path):
    notes, again = Notes(), Notes()
    fit(tmp_path, notes, on_step=lambda step, *_: step == 6)
    assert notes.told[-1] == ("finish", None)
    fit(tmp_path)
    fit(tmp_path, again)
    assert again.told == []


@pytest.mark.parametrize("event", ["start", "row", "finish"])
def test_one_that_fails_costs_one_line(event, tmp_path, capsys):
    failing, other = Notes(event), Notes()
    result = fit(tmp_path, failing, other)
    assert result.state.step == 14 and other.steps == list(range(1, 15))
    assert [told for told, _ in failing.told].count(event) == 1 and failing.told[-1][0] == event
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: Notes gets nothing more of this run (no network at {event}), which training "
        "doesn't need."
    )


def test_the_numbers_do_not_depend_on_them(tmp_path):
    results = [fit(tmp_path / "a", Notes()), fit(tmp_path / "b", Notes("row")), fit(None, Notes())]
    assert len({result.summary["weights_digest"] for result in results}) == 1


def test_names():
    assert tuple(trackers._KNOWN) == settings.TRACKERS
    for wrong, said in [
        ("wandb", "'wandb' is no list of trackers; give ['wandb']"),
        (["wandbb"], "'wandbb' is not one of tensorboard, wandb; did you mean 'wandb'?"),
        ([Notes], "is a class, not an object of it; give a name, or an object with"),
        ([print], "has no start; give a name, or an object with the methods start(run)"),
    ]:
        with pytest.raises(UsageError) as error:
            fit(None, *wrong) if isinstance(wrong, list) else trackers.Tracking(wrong)
        assert said in str(error.value)
