"""`python -m adabatch_jax.doctor` on a run's folder in which something is damaged, lost or odd."""

import builtins
import io
import os
import shutil

import pytest

from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.system.files import write_sealed
from tests.commands.conftest import states, without_checkpoints
from tests.run_folders import PLAN, STEPS, content, metrics_content


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: _flip(folder / "state" / "data"), "state/data was changed"),
        (lambda folder: _flip(folder / "manifest"), "manifest was changed"),
        (lambda folder: os.truncate(folder / "state" / "data", 9), "9 bytes instead of 7,680"),
        (lambda folder: [shutil.rmtree(folder), folder.mkdir()], "manifest is missing"),
        (lambda folder: (folder / "state" / "x").write_text(""), "state/x doesn't belong to it"),
    ],
)
def test_the_newest_checkpoint_is_damaged(damage, reason, run, doctor):
    damage(run / "checkpoints" / "30")
    code, findings = doctor(run)
    assert code == 4 and states(findings) == {
        "checkpoint 30": "problem",
        "metrics.jsonl": "note",  # two rows lie beyond update 20
    }
    assert reason in findings["checkpoint 30"]["text"]
    assert findings["metrics.jsonl"]["num_beyond"] == 2
    text = f"it would go on after update 20 of {PLAN.num_steps}, passing over 30: "
    assert findings["resume"]["text"].startswith(text)


def test_no_checkpoint_is_good(run, doctor):
    for step in STEPS:
        _flip(run / "checkpoints" / str(step) / "state" / "data")
    code, findings = doctor(run)
    assert code == 4 and findings["resume"]["state"] == "problem"
    text = findings["resume"]["text"]
    assert text.startswith("it would be refused: checkpoint 30 in ") and "nor can 2 older" in text


def test_a_renamed_checkpoint(run, doctor):
    (run / "checkpoints" / "30").rename(run / "checkpoints" / "40")
    code, findings = doctor(run)
    assert code == 4 and "it was saved as step 30, not 40" in findings["checkpoint 40"]["text"]


def test_what_else_lies_there(run, doctor):
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "30", checkpoints / "bad-30")
    (checkpoints / "35.orbax-checkpoint-tmp-1").mkdir()
    (checkpoints / "notes.txt").write_text("")
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"checkpoints": "note"}
    assert "35.orbax-checkpoint-tmp-1 was left by a process" in findings["checkpoints"]["text"]


@pytest.mark.parametrize(
    ("name", "content", "code", "text"),
    [
        ("config.json", "{", 5, "is damaged: it is not JSON"),
        ("config.json", "[" * 100_000, 5, "is damaged"),
        ("config.json", '{"optimizer": "sdg"}', 2, "did you mean 'sgd'"),
        ("plan.json", "{}", 5, "holds no plan"),
        ("plan.json", '{"phases": "<script>"}', 5, "holds no plan"),
        ("summary.json", "[]", 5, "is damaged: it isn't what the run wrote"),
        ("summary.json", "{}", 5, "is damaged: it isn't what the run wrote"),
        ("last_checkpoint.json", "[" * 100_000, 5, "damaged; a run sets it aside"),
        ("metrics.jsonl", '{"step": "<b>"}\n', 4, "damaged or missing"),
        ("metrics.jsonl", "[" * 100_000 + "\n", 4, "damaged or missing"),
        ("config.json", os.mkfifo, 5, "not a regular file; move it away"),
        ("plan.json", os.mkfifo, 5, "not a regular file; move it away"),
        ("summary.json", os.mkfifo, 5, "not a regular file"),
        ("metrics.jsonl", os.mkfifo, 5, "not a regular file; move it away"),
    ],
)
def test_files_that_cannot_be_read(name, content, code, text, run, doctor):
    if callable(content):
        (run / name).unlink(missing_ok=True)
        content(run / name)
    else:
        (run / name).write_text(content)
    found, findings = doctor(run)
    assert found == code and findings[name]["state"] == "problem"
    assert text in findings[name]["text"]


@pytest.mark.parametrize("name", ["environment.json", ".metrics.csv.tmp", "curves_epochs.png"])
@pytest.mark.parametrize("with_checkpoints", [True, False])
def test_folders_in_the_place_of_files(name, with_checkpoints, run, doctor):
    if not with_checkpoints:
        without_checkpoints(run)
    (run / name).mkdir()
    code, findings = doctor(run)
    assert code == 5 and "it is a folder where a run writes a file" in findings[name]["text"]
    assert findings["resume"]["text"] == f"it would be refused, see {name}."


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_lock_that_is_no_file(make, run, doctor):
    (run / ".lock").unlink(missing_ok=True)
    make(run / ".lock")
    code, findings = doctor(run)
    assert code == 2 and findings["resume"]["text"] == "it would be refused, see .lock."


@pytest.mark.parametrize(("name", "expected"), [(".lock", 2), ("checkpoints", 5)])
def test_what_this_user_may_not_write(name, expected, run, doctor, monkeypatch):
    (run / ".lock").touch()
    # Root, as whom tests may run, may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, how: not str(path).endswith(name))
    code, findings = doctor(run)
    assert code == expected and findings["resume"]["text"] == f"it would be refused, see {name}."


def test_checkpoints_that_are_gone(run, doctor):
    without_checkpoints(run)
    (run / "last_checkpoint.json").write_text('{"step": 30}')
    code, findings = doctor(run)
    assert code == 4 and "had checkpoints" in findings["resume"]["text"]


@pytest.mark.parametrize("is_there", [True, False])
def test_rows_that_are_lost(is_there, run, doctor):
    (run / "metrics.jsonl").unlink()
    if is_there:
        (run / "metrics.jsonl").write_bytes(metrics_content(range(1, 31, 5)))
    code, findings = doctor(run)
    assert code == 4 and findings["metrics.jsonl"]["state"] == "problem"
    assert "--allow-change rows" in findings["metrics.jsonl"]["text"]
    assert findings["resume"]["text"] == "it would be refused, see metrics.jsonl."


def test_rows_that_are_known_as_lost(run, doctor):
    (run / "metrics.jsonl").write_text("")
    last = {"run_id": "0" * 16, "step": 30, "rows_lost_at": 30}
    write_sealed(run / "last_checkpoint.json", last)
    code, findings = doctor(run)
    assert code == 0 and findings["metrics.jsonl"]["text"] == "no row yet"
    assert findings["resume"]["step"] == 30
    assert findings["lost rows"]["text"] == "the rows up to update 30 were lost; nothing was left."
    (run / "bad-metrics-30.jsonl").write_text("garbage")
    assert "bad-metrics-30.jsonl" in doctor(run)[1]["lost rows"]["text"]


def test_a_torn_line_and_rows_beyond(run, doctor):
    (run / "metrics.jsonl").write_bytes(metrics_content(range(0, 36, 5)) + b'{"ste')
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"metrics.jsonl": "note"}
    assert findings["metrics.jsonl"]["text"] == (
        "7 rows, up to update 30; the last line was cut short and 1 row lies beyond checkpoint 30, "
        "which a run removes and writes anew."
    )


@pytest.mark.parametrize(
    "content", ['{"prediction": []}', '{"prediction": {"phases": [{}]}}', "[" * 100_000, "\0"]
)
def test_a_damaged_prediction_decides_nothing(content, run):
    (run / "plan.json").write_text(content)
    assert RunFolder(run).wants_prediction(PLAN)


def test_a_checkpoint_that_can_not_be_read_is_not_called_damaged(run, doctor, monkeypatch):
    data = run / "checkpoints" / "30" / "state" / "data"

    def refusing(file, *args, **kwargs):
        if str(file) == str(data):
            raise PermissionError(13, "Permission denied", str(file))
        return io.open(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refusing)
    before = content(run)
    code, findings = doctor(run)
    said = f"cannot read {data}: Permission denied."
    assert code == 5 and findings["checkpoint 30"]["text"] == said
    assert findings["checkpoints"]["text"] == said and "resume" not in findings
    assert content(run) == before
