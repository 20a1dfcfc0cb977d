"""Damaged files of a run's folder that are no checkpoint: made anew, or refused, never believed."""

import contextlib
import io
import random
import shutil

import pytest

from adabatch_jax import doctor, train
from tests.faults.damage import edit_at_random
from tests.faults.harness import Outcome, Run, assert_same, content, finish

pytestmark = pytest.mark.faults

NAMES = (
    "config.json", "plan.json", "environment.json", "metrics.jsonl", "metrics.csv",
    "last_checkpoint.json", "summary.json", "report.html", ".lock",
)  # fmt: skip
FIGURES = ("epoch", "train_loss", "test_loss", "test_accuracy", "num_parameters", "decisions")


def gone_on(run, whole, is_quick=False):
    """Goes on, to just what the undisturbed run left, or is refused; returns which.

    Where no update is left to be done it `is_quick` in this process, whose devices are others.
    """
    before = content(run.workdir)
    examined = in_this_process(doctor.main, str(run.workdir))
    assert content(run.workdir) == before
    arguments = [*run.arguments.split(), "--workdir", str(run.workdir)]
    outcome = in_this_process(train.main, *arguments) if is_quick else finish(run.start())
    if outcome.code:
        assert outcome.code in (4, 5) and examined.code in (4, 5)
        assert len(outcome.err.splitlines()) == 1 and content(run.workdir) == before
        return False
    assert_same(run, whole)
    ours, theirs = run.summary(), whole.summary()
    assert [ours[name] for name in FIGURES] == [theirs[name] for name in FIGURES]
    again = in_this_process(train.main, *arguments)
    assert again.code == 0 and again.out.startswith("finished already: ")
    return True


def in_this_process(main, *arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Outcome(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize("seed", range(4))
def test_files_that_were_changed_at_random(oracle, begun, tmp_path, state, seed):
    whole, foreign = oracle("carry"), oracle("carry", "--seed 5")
    stored = whole if state == "finished" else begun
    draw, refused = random.Random(seed), 0
    for number in range(9 if state == "finished" else 4):
        run = Run(tmp_path / str(number), whole.arguments)
        shutil.copytree(stored.workdir, run.workdir)
        names = draw.sample(NAMES, draw.choice([1, 1, 2]))
        for name in names:
            print(edit_at_random(run.workdir / name, draw, foreign.workdir / name))
        is_refused = not gone_on(run, whole, state == "finished")
        # Rows before the newest checkpoint are what nothing else knows.
        assert not is_refused or "metrics.jsonl" in names
        refused += is_refused
    assert refused <= 4


@pytest.mark.parametrize("change", ["a character", "another run's", "none"])
@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_an_odd_file_about_the_newest_checkpoint(oracle, begun, tmp_path, state, change):
    whole, foreign = oracle("carry"), oracle("carry", "--seed 5")
    run = Run(tmp_path / "copy", whole.arguments)
    shutil.copytree((whole if state == "finished" else begun).workdir, run.workdir)
    path = run.workdir / "last_checkpoint.json"
    text = path.read_text()
    before = {step: content(run.checkpoint(step)) for step in run.steps()}
    if change == "none":
        path.unlink()
    elif change == "another run's":
        shutil.copy(foreign.workdir / path.name, path)
    else:
        at = text.index('"', text.index("run_id") + 8) + 1
        path.write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])
    assert gone_on(run, whole, state == "finished")
    assert not [name for name in run.workdir.rglob("bad-*") if name.name[4:5].isdecimal()]
    kept = set(before) & set(run.steps())
    assert all(content(run.checkpoint(step)) == before[step] for step in kept)
    assert (run.workdir / f"bad-{path.name}").exists() == (change != "none")
