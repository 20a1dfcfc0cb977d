"""`python -m adabatch_jax.doctor`: what it finds, its exit codes, and that it changes nothing."""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys

import jax

from adabatch_jax.config import TrainConfig
from adabatch_jax.doctor import main
from adabatch_jax.runs.folder.folder_reading import FORMAT
from tests.commands.conftest import states, without_checkpoints
from tests.run_folders import CONFIG, PLAN, STEPS, metrics_content, write_checkpoint, write_summary


def everything_in(folder):
    """Names, kinds, times and contents of all there is."""
    return {
        path: (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
        for path in [folder, *folder.rglob("*")]
    }


def test_a_run_that_can_go_on(run, doctor):
    code, findings = doctor(run)
    assert (code, states(findings)) == (0, {})
    assert findings["lock"]["text"] == "free"
    for step in STEPS:
        text = f"good, sample {PLAN.samples_at(step):,}, 1 arrays, "
        assert findings[f"checkpoint {step}"]["text"].startswith(text)
    assert findings["metrics.jsonl"]["text"] == "7 rows, up to update 30"
    assert findings["resume"]["step"] == 30
    assert findings["resume"]["text"] == (
        f"it would go on after update 30 of {PLAN.num_steps}: python -m adabatch_jax.train "
        f"--config {run}/config.json --workdir {run}"
    )


def test_what_variables_say_of_the_command_is_no_problem(run, doctor):
    """It has its own settings, as `train` has."""
    jax.config.update("jax_disable_jit", True)
    try:
        code, findings = doctor(run)
    finally:
        jax.config.update("jax_disable_jit", False)
    assert (code, states(findings)) == (0, {})


def test_a_table_for_people(run, command):
    outcome = command(main, str(run))
    lines = outcome.out.splitlines()
    assert (outcome.code, outcome.err, lines[-1]) == (0, "", "No problem was found.")
    assert "Environment" in lines and "Run" in lines
    starts = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in lines[1:8]}
    assert len(starts) == 1  # aligned
    assert any(line.split()[:2] == ["python", sys.version.split()[0]] for line in lines)
    assert any(line.split()[:1] == ["devices"] for line in lines)


def test_nothing_is_changed_or_made(run, tmp_path, command):
    (run / "checkpoints" / "30" / "state" / "data").write_bytes(b"damaged")
    (run / "checkpoints" / "35.orbax-checkpoint-tmp-1").mkdir()
    (run / "metrics.jsonl").write_bytes(metrics_content(range(0, 36, 5)) + b'{"ste')
    (run / "summary.json").write_text("{")
    before = everything_in(tmp_path)
    assert command(main, str(run)).code == 4
    assert command(main, ["--json", str(run)]).code == 4
    assert command(main, "").code == 0
    assert everything_in(tmp_path) == before


def test_a_run_that_has_not_saved(run, doctor):
    without_checkpoints(run)
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"checkpoints": "note"}
    assert findings["resume"]["text"].startswith("it would begin with the first update: ")


def test_a_finished_run(run, doctor):
    write_summary(run, 30)
    code, findings = doctor(run)
    assert (code, states(findings)) == (0, {})
    assert findings["summary.json"]["text"] == "finished after update 30, test accuracy 96.12 %"
    assert findings["resume"]["text"] == "the run is finished: its report would be written."


def test_a_summary_of_another_run(run, doctor):
    write_summary(run, 30, examples_digest="another")
    code, findings = doctor(run)
    assert code == 4 and states(findings) == {"summary.json": "problem"}


def test_a_summary_without_its_checkpoint(run, doctor):
    write_summary(run, PLAN.num_steps)
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"summary.json": "note"}
    assert "its last, is not among the good ones" in findings["summary.json"]["text"]


def test_an_edited_seed(run, doctor):
    (run / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"seed": 4}))
    code, findings = doctor(run)
    assert code == 4 and "seed" in findings["settings"]["text"]
    assert findings["resume"]["text"] == "it would be refused, see settings."


def test_an_edited_past(run, doctor):
    edited = CONFIG.to_dict() | {"batch_schedule": "32, 1ep: 128"}
    (run / "config.json").write_text(json.dumps(edited))
    code, findings = doctor(run)
    assert code == 4 and "phase 1 had batch_size 64 there" in findings["settings"]["text"]


def test_an_edited_future(run, doctor):
    (run / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"epochs": 5.0}))
    code, findings = doctor(run)
    num_steps = dataclasses.replace(CONFIG, epochs=5.0).plan(1442).num_steps
    assert code == 0 and states(findings) == {"settings": "note"}
    assert findings["settings"]["text"] == "epochs is 5.0 from update 30 on, and was 2.0"
    assert f"go on after update 30 of {num_steps}: " in findings["resume"]["text"]


def test_another_order_of_the_examples(run, doctor):
    shutil.rmtree(run / "checkpoints" / "30")
    write_checkpoint(run, 30, order_digest="0" * 16)
    code, findings = doctor(run)
    assert code == 4 and "were in another order" in findings["settings"]["text"]


def test_checkpoints_of_another_version(run, doctor):
    shutil.rmtree(run / "checkpoints" / "30")
    write_checkpoint(run, 30, format=FORMAT + 1)
    code, findings = doctor(run)
    assert findings["resume"]["step"] == 20 and "passing over 30" in findings["resume"]["text"]


def test_settings_that_are_gone(run, doctor):
    (run / "config.json").unlink()
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"config.json": "note"}
    text = "it would go on after update 30, with the settings it was begun with."
    assert findings["resume"]["text"] == text


def test_an_edited_plan(run, doctor):
    (run / "plan.json").write_text(json.dumps(TrainConfig(epochs=2).plan(1442).to_dict()))
    code, findings = doctor(run)
    assert code == 0 and states(findings) == {"plan.json": "note"}


def test_folders_that_are_no_run(run, tmp_path, doctor):
    def text(folder, expected):
        code, findings = doctor(folder)
        assert (code, set(findings)) == (expected, {"folder"})
        return findings["folder"]["text"]

    assert "there is no folder" in text(tmp_path / "missing", 2)
    assert "is a file" in text(run / "config.json", 2)
    assert "it holds the run 'run'" in text(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    assert "training would begin here" in text(tmp_path / "empty", 0)


def test_a_name_that_no_disk_takes(tmp_path, doctor):
    code, findings = doctor(tmp_path / ("x" * 300))
    assert code == 5 and "File name too long" in findings["folder"]["text"]


def test_a_live_owner_and_a_dead_one(run, doctor, command):
    code = (
        "import sys, pathlib; from adabatch_jax.runs.folder.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout.readline() == b"locked\n"
    found, findings = doctor(run)
    assert found == 0 and states(findings) == {"resume": "note"}
    assert f"process {owner.pid} on {socket.gethostname()}" in findings["lock"]["text"]
    assert findings["resume"]["text"] == "a second process would be refused."
    owner.kill()
    owner.communicate()
    found, findings = doctor(run)
    assert found == 0 and states(findings) == {"lock": "note"}
    assert "which is gone" in findings["lock"]["text"]


def test_hostile_names_and_values_reach_no_terminal(run, command):
    name = "\x1b]0;owned\x07"
    (run / "checkpoints" / f"bad{name}").mkdir()
    (run / "checkpoints" / f"bad{name}" / "state").mkdir()
    (run / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"name": name}))
    outcome = command(main, str(run))
    assert outcome.code == 2 and "\x1b" not in outcome.out and r"bad\x1b]0;owned" in outcome.out


def test_datasets_are_opened(run, tmp_path, command):
    from adabatch_jax.data.datasets.preparation import prepare

    path = prepare("digits", tmp_path / "data")
    arguments = ["--json", "--data-dir", str(tmp_path / "data")]

    def dataset():
        outcome = command(main, arguments)
        (found,) = [
            finding
            for finding in json.loads(outcome.out)["environment"]
            if finding["subject"] == "dataset digits"
        ]
        assert found["exit_code"] == outcome.code
        return found

    assert dataset()["splits"] == {"test": 355, "train": 1442}
    (file,) = path.glob("digits-train*")
    os.truncate(file, 100)
    assert dataset()["exit_code"] == 5 and str(file) in dataset()["text"]


def test_an_environment_that_cannot_train(command, monkeypatch):
    import importlib.util

    original = importlib.util.find_spec
    missing = {"flax", "rich"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in missing else original(name)
    )
    outcome = command(main, "")
    assert outcome.code == 2 and "problem: training needs flax, rich" in outcome.out


def test_help_is_quick_to_import():
    code = (
        "import sys; from adabatch_jax.doctor import main; main(['--help']);"
        "assert not {'jax', 'numpy', 'orbax', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
