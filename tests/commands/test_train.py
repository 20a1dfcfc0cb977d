"""`python -m adabatch_jax.train`: the default run, resuming, and other pasts."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest.mock import ANY

import pytest

from adabatch_jax.doctor import main as doctor
from adabatch_jax.runs.folder.finished_run import read_summary
from adabatch_jax.runs.folder.lock import lock_owner
from adabatch_jax.runs.folder.run_folder import RunFolder
from adabatch_jax.system.errors import NotAsWritten
from adabatch_jax.system.files import write_sealed
from adabatch_jax.train import main
from tests.run_folders import content

SHORT = "--epochs 3 --batch-schedule 64 x2 every 1ep --log-every 7st --checkpoint-every 9st"


def reproducible(workdir):
    rows = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second"))}
        for row in rows
    ]


def digests(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return summary["weights_digest"], summary["examples_digest"]


def start(*arguments, cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "adabatch_jax.train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """An uninterrupted short run."""
    workdir = tmp_path_factory.mktemp("oracle") / "run"
    process = start(*SHORT.split(), "--workdir", str(workdir))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return workdir


def test_the_run_folder_is_complete(oracle):
    assert {path.name for path in oracle.iterdir()} >= {
        "config.json", "plan.json", "environment.json", "metrics.jsonl", "metrics.csv",
        "summary.json", "checkpoints", "report.html", "curves_epochs.png", "tensorboard",
    }  # fmt: skip
    rows = reproducible(oracle)
    assert rows[-1]["epoch"] == 3.0 and rows[-1]["batch_size"] == 256
    assert list(rows[-1])[:10] == [
        "step", "samples", "epoch", "phase", "batch_size", "learning_rate", "train_loss",
        "examples_digest", "test_loss", "test_accuracy",
    ]  # fmt: skip


def wait_for_rows(process, workdir, count):
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_text().count("\n") >= count:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before row {count}: {process.stdout.read()}")


@pytest.mark.slow
def test_killed_again_and_again(oracle, tmp_path):
    for rows in (1, 4, 6):
        process = start(*SHORT.split(), "--workdir", str(tmp_path / "run"))
        wait_for_rows(process, tmp_path / "run", rows)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = start(*SHORT.split(), "--workdir", str(tmp_path / "run"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert reproducible(tmp_path / "run") == reproducible(oracle)
    assert digests(tmp_path / "run") == digests(oracle)


def test_a_signal_saves_and_says_how_to_go_on(oracle, tmp_path):
    for number, code, rows in ((signal.SIGINT, 130, 3), (signal.SIGTERM, 143, 6)):
        process = start(*SHORT.split(), "--workdir", str(tmp_path / "run"))
        wait_for_rows(process, tmp_path / "run", rows)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, output
        assert "Traceback" not in output
        assert ("resuming after update" in output) == (number == signal.SIGTERM)
        last = output.strip().splitlines()[-1]
        assert "everything is saved" in last and "--workdir" in last
        assert not (tmp_path / "run" / "summary.json").exists()
    process = start(*SHORT.split(), "--workdir", str(tmp_path / "run"))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "resuming after update" in output
    assert reproducible(tmp_path / "run") == reproducible(oracle)
    assert digests(tmp_path / "run") == digests(oracle)


def test_a_signal_during_the_imports_ends_at_once(tmp_path):
    process = start("--workdir", str(tmp_path / "run"))
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), output


def test_a_finished_run_is_left_alone(oracle, command):
    before = {path: path.stat().st_mtime_ns for path in oracle.rglob("*")}
    outcome = command(main, f"{SHORT} --workdir {oracle}")
    assert outcome.code == 0 and outcome.out.startswith("finished already: test accuracy")
    assert {path: path.stat().st_mtime_ns for path in oracle.rglob("*")} == before


def test_one_process_at_a_time_writes_the_report(oracle, tmp_path, command, refused, monkeypatch):
    run, owners = tmp_path / "run", []
    shutil.copytree(oracle, run)
    (run / "report.html").unlink()
    monkeypatch.setattr(
        "adabatch_jax.report.write_report", lambda workdir: owners.append(lock_owner(workdir))
    )
    with RunFolder(run):
        refused(main, f"{SHORT} --workdir {run}", "another process is training in")
    assert command(main, f"{SHORT} --workdir {run}").out.startswith("finished already")
    (run / "summary.json").unlink()  # as if killed at the plan's end
    assert "done: " in command(main, f"{SHORT} --workdir {run}").out
    assert [owner.is_alive for owner in owners] == [True, True]


def test_the_runs_own_config_file_is_the_same_command(oracle, command):
    outcome = command(main, f"--config {oracle / 'config.json'} --workdir {oracle}")
    assert outcome.code == 0 and "finished already" in outcome.out


@pytest.mark.slow
def test_prolonged_twice_and_stopped_in_between(tmp_path, command, faults):
    """From where the batch is to grow to within a phase, from there into the next, and on."""
    schedule = "64, 1ep: 128, 1.3ep: 64"
    arguments = f"--batch-schedule {schedule} --lr 0.05 --workdir {tmp_path / 'r'}"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the (batch schedule|learning rate) never")
        first = command(main, f"{arguments} --duration 1442sp")
        longer = command(main, f"{arguments} --epochs 1.2")
    told = "never reaches '1ep: 128' and '1.3ep: 64': the run ends at 1442sp"
    assert first.code == 0 and first.out.count(told) == 1
    assert longer.code == 0 and longer.out.count("never reaches '1.3ep: 64': ") == 1
    assert "resuming after update 23" in longer.out
    plan = json.loads((tmp_path / "r" / "plan.json").read_text())
    assert [p["batch_size"] for p in plan["phases"]] == [64, 128]
    faults("step.end:1:sigterm")
    stopped = command(main, f"{arguments} --epochs 1.5 --checkpoint-every 3st")
    assert stopped.code == 143 and "never reaches" not in stopped.out, stopped
    faults("")
    again = command(main, f"{arguments} --epochs 1.5 --checkpoint-every 3st")
    assert again.code == 0 and "resuming after update" in again.out, again
    assert reproducible(tmp_path / "r")[-1]["epoch"] == 1.5
    assert command(main, f"{arguments} --epochs 1.6").code == 0


def test_two_processes_in_one_folder(oracle, tmp_path, refused):
    arguments = f"{SHORT} --workdir {tmp_path / 'run'}"
    process = start(*arguments.split(), ADABATCH_FAULT="step.end:15:sleep:120")
    wait_for_rows(process, tmp_path / "run", 1)
    refused(main, arguments, "another process is training in")
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_finished_run_without_checkpoints_is_not_begun_anew(oracle, tmp_path, refused):
    shutil.copytree(oracle, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    refused(main, f"{SHORT} --seed 7 --workdir {tmp_path / 'run'}", "had checkpoints", code=4)
    (tmp_path / "run" / "last_checkpoint.json").unlink()
    longer = f"{SHORT} --epochs 9 --workdir {tmp_path / 'run'}"
    refused(main, longer, "had checkpoints", code=4)
    assert reproducible(tmp_path / "run") == reproducible(oracle)


@pytest.mark.parametrize("allowed", ["", " --allow-change rows"])
def test_a_refusal_changes_no_file(allowed, oracle, tmp_path, refused):
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    (newest / "manifest").write_text("")
    if allowed:
        (run / "metrics.jsonl").write_text("garbage")
    before = content(run)
    refused(main, f"{SHORT} --seed 99 --workdir {run}{allowed}", "seed", code=4)
    assert content(run) == before


def test_a_finished_run_says_that_its_rows_were_lost(oracle, tmp_path, command):
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "metrics.jsonl").write_text("garbage")
    assert command(main, f"{SHORT} --workdir {run} --allow-change rows").code == 0
    lost = {"kind": "rows_lost", "step": summary["step"]}
    changed = {"decisions": [lost], "files": ANY, "digest": ANY}
    assert json.loads((run / "summary.json").read_text()) == summary | changed


def test_lost_files_are_told(oracle, tmp_path, command, refused):
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    (run / "summary.json").unlink()
    (run / "metrics.jsonl").unlink()
    refused(main, f"{SHORT} --workdir {run}", "metrics.jsonl", code=4)
    outcome = command(main, f"{SHORT} --allow-change rows --workdir {run}")
    assert outcome.code == 0 and "goes on without the rows up to update" in outcome.out
    assert digests(run) == digests(oracle)
    again = command(main, f"{SHORT} --workdir {run}")
    assert again.code == 0 and "finished already" in again.out
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "last_checkpoint.json").unlink()
    with RunFolder(run) as folder:
        assert folder.checkpoint is None
        assert "begins with its first update again" in folder.notes[-1]


@pytest.mark.parametrize(
    "damage", [{"step": "3"}, {"step": None}, {"total_seconds": None}, {"test_accuracy": "high"}]
)
def test_a_summary_without_its_figures_is_none(tmp_path, damage):
    figures = {"step": 3, "samples": 48, "total_seconds": 1.5, "config_digest": "a"}
    path = tmp_path / "summary.json"
    write_sealed(path, figures)
    assert read_summary(tmp_path) == figures
    write_sealed(path, figures | damage)
    with pytest.raises(NotAsWritten, match="lacks the run's figures"):
        read_summary(tmp_path)


CHANGES = {
    "metrics.jsonl": lambda path: path.write_bytes(path.read_bytes() * 2),
    "summary.json": lambda path: path.write_text(
        re.sub(r'(accuracy": )0', r"\g<1>1", path.read_text())
    ),
    "metrics.csv": lambda path: path.write_bytes(path.read_bytes().replace(b"0.", b"0.9", 1)),
    "config.json": lambda path: path.write_text("{}"),
    "plan.json": lambda path: os.truncate(path, 100),
    "environment.json": lambda path: path.unlink(),
    "last_checkpoint.json": lambda path: path.write_text("[" * 100_000),
    "report.html": lambda path: os.truncate(path, 1000),
}


@pytest.mark.parametrize(
    "names", [["metrics.jsonl"], ["summary.json"], [*CHANGES][2:-1], [*CHANGES][-1:]]
)
def test_what_a_finished_run_left_is_written_anew_where_it_was_changed(
    oracle, tmp_path, command, names
):
    """With a line each that says so, and to just what it was, but for what no checkpoint knows."""
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    for name in names:
        CHANGES[name](run / name)
    before = content(run)
    damaged = command(doctor, str(run))
    assert damaged.code == 5 and content(run) == before
    assert all(name in damaged.out for name in names)
    outcome = command(main, f"{SHORT} --workdir {run}")
    assert outcome.code == 0
    told = [line for line in outcome.out.splitlines() if line.startswith(("note", "warning"))]
    assert len(told) == len(names) and all("is written anew" in line for line in told)
    assert all(any(name in line for line in told) for name in names)
    now, whole = content(run), content(oracle)
    for file in ("config.json", "metrics.jsonl", "metrics.csv", "last_checkpoint.json"):
        assert now[file] == whole[file]
    if names == ["metrics.jsonl"]:
        assert json.loads(now["summary.json"]) == json.loads(whole["summary.json"])
    assert digests(run) == digests(oracle)
    figures = {"test_accuracy", "test_loss", "train_loss", "epoch", "num_parameters", "samples"}
    for figure in figures:
        ours, theirs = (json.loads(files["summary.json"]) for files in (now, whole))
        assert ours[figure] == theirs[figure]
    again = command(main, f"{SHORT} --workdir {run}")
    assert again.code == 0 and again.out.startswith("finished already: ")
    assert command(doctor, str(run)).code == 0


def test_a_changed_row_of_a_finished_run_is_refused(oracle, tmp_path, refused):
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    rows = (run / "metrics.jsonl").read_bytes()
    for changed in (rows.replace(b"0.", b"0.9", 1), rows.split(b"\n", 1)[1], rows[:-1]):
        (run / "metrics.jsonl").write_bytes(changed)
        before = content(run)
        refused(main, f"{SHORT} --workdir {run}", "metrics.jsonl", code=4)
        assert content(run) == before


def test_without_checkpoints_what_was_changed_is_named(oracle, tmp_path, command):
    run = tmp_path / "run"
    shutil.copytree(oracle, run)
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.csv").unlink()
    outcome = command(main, f"{SHORT} --workdir {run}")
    assert outcome.code == 0 and "finished already" in outcome.out
    assert "left it: metrics.csv; without its checkpoints" in outcome.out
    examined = command(doctor, str(run))
    assert examined.code == 5 and "the run is finished, and without its" in examined.out
    shutil.copy(oracle / "metrics.csv", run)
    examined = command(doctor, str(run))
    assert examined.code == 0 and "the run is finished: nothing would be done" in examined.out


def test_a_missing_report_is_written_again(oracle, tmp_path, command):
    shutil.copytree(oracle, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    outcome = command(main, f"{SHORT} --workdir {tmp_path / 'run'}")
    assert outcome.code == 0 and (tmp_path / "run" / "report.html").exists()


def test_a_full_disk_ends_with_5(tmp_path):
    arguments = f"--epochs 1 --batch-schedule 64 --workdir {tmp_path}/r"
    limited = f"ulimit -S -f 8; exec {sys.executable} -m adabatch_jax.train {arguments}"
    done = subprocess.run(
        ["bash", "-c", limited], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("error: ") and said.endswith("File too large."), done.stderr


def test_without_workdir_the_settings_name_the_folder(oracle, tmp_path):
    process = start(*SHORT.split(), "--name", "quick", cwd=tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("quick-") and len(folder.name) == len("quick-") + 8
    lines = output.strip().splitlines()
    assert str(folder.relative_to(tmp_path)) in lines[0]
    assert str(folder.relative_to(tmp_path)) in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--model resnet20_cifar", "model='cnn_digits', not 'resnet20_cifar'"),
        ("--seed 1", "seed=0, not 1"),
        ("--data.flip", "data.flip=False, not True"),
        ("--batch-schedule 32 x2 every 1ep", "phase 1 … batch_size 64 … 32 … batch_schedule"),
        ("--lr 0.2", "0.05 and 0.2 … update 0 … --allow-change lr"),
        ("--epochs 1", "4,326 samples in 3 phases … 1,442 in 1"),
    ],
)
def test_another_past_is_refused_by_name(oracle, refused, arguments, text):
    before = (oracle / "config.json").read_bytes()
    refused(main, f"{SHORT} --workdir {oracle} {arguments}", text, code=4)
    assert (oracle / "config.json").read_bytes() == before


def test_help_is_quick_and_whole():
    code = (
        "import sys; from adabatch_jax.train import main; code = main(['--help']); "
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow_datasets'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in (
        "dataset", "model", "batch-schedule", "lr", "coupling", "reference-batch-size",
        "optimizer", "momentum", "weight-decay", "epochs", "seed", "microbatch-size", "remainder",
        "config", "workdir",
    ):  # fmt: skip
        assert f"--{flag}" in done.stdout


def test_piped_into_head(tmp_path):
    command = f"{sys.executable} -m adabatch_jax.train {SHORT} --workdir {tmp_path}/run | head -n 1"
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL, timeout=300)
    assert (Path(tmp_path) / "run" / "summary.json").exists()
    assert os.listdir(tmp_path) == ["run"]
