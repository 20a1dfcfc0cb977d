"""Damaged checkpoints and metrics: an older one is used, or it is said why none can be."""

import hashlib
import os
import shutil
import signal
from unittest.mock import ANY

import pytest

from tests.faults.damage import DAMAGES, STRAYS, arrays, flip_bit
from tests.faults.harness import (
    Run,
    assert_same,
    content,
    finish,
    killed_by,
    start,
)

pytestmark = pytest.mark.faults

KILLED = killed_by(signal.SIGKILL)
NEXT = "step.end:9:sigterm"  # saves a checkpoint of its own, after one that is due


def examined(run):
    """What doctor says about a run's folder, which it leaves as it is."""
    before = content(run.workdir)
    outcome = finish(start("doctor", str(run.workdir)))
    assert content(run.workdir) == before
    assert "Traceback" not in outcome.err, outcome.err
    return outcome


@pytest.mark.parametrize("names", [list(DAMAGES)[i::6] for i in range(6)], ids=range(6))
def test_a_damaged_newest_checkpoint_is_skipped_again_and_again(oracle, begun, names):
    for name in names:
        *_, sound, newest = begun.steps()
        DAMAGES[name](begun.checkpoint(newest))
        assert str(newest) in examined(begun).out or not begun.checkpoint(newest).exists()
        outcome = begun.go(NEXT, code=143, sound=sound)
        assert outcome.resumed_after == sound, name
        # Where nothing is left of it there is nothing to tell.
        if name not in ("gone", "renamed to a later step"):
            said = f"warning: checkpoint {newest} can't be used ("
            lines = [line for line in outcome.out.splitlines() if line.startswith(said)]
            assert len(lines) == 1, (name, outcome)
    begun.go()
    assert_same(begun, oracle("carry"))


def test_two_damaged_ones_are_skipped(oracle, begun):
    *_, sound, middle, newest = begun.steps()
    flip_bit(arrays(begun.checkpoint(newest)))
    os.truncate(arrays(begun.checkpoint(middle)), 100)
    outcome = begun.go(sound=sound)
    assert outcome.resumed_after == sound
    assert_same(begun, oracle("carry"))


@pytest.mark.parametrize("name", STRAYS)
def test_strays(oracle, begun, name):
    STRAYS[name](begun.workdir / "checkpoints")
    examined(begun)
    outcome = begun.go(NEXT, code=143, sound=30)
    assert outcome.resumed_after == 30
    begun.go(sound=39)
    assert begun.summary()["weights_digest"] == oracle("carry").summary()["weights_digest"]
    assert begun.rows() == oracle("carry").rows()


def test_a_checkpoint_of_another_run(oracle, begun, tmp_path):
    other = Run(tmp_path / "other", f"{begun.arguments} --seed 5")
    other.go("step.end:34:sigterm", code=143)
    shutil.copytree(other.checkpoint(34), begun.workdir / "checkpoints" / "34")
    outcome = begun.go(sound=30)
    assert outcome.resumed_after == 30
    assert_same(begun, oracle("carry"))


@pytest.mark.parametrize("damage", ["bits", "empty", "gone", "folder gone"])
def test_all_are_bad(begun, damage):
    for step in begun.steps():
        if damage == "bits":
            flip_bit(arrays(begun.checkpoint(step)))
        else:
            shutil.rmtree(begun.checkpoint(step))
        if damage == "empty":
            begun.checkpoint(step).mkdir()
    if damage == "folder gone":
        shutil.rmtree(begun.workdir / "checkpoints")
    rows = (begun.workdir / "metrics.jsonl").read_bytes()
    assert examined(begun).code == 4
    for _ in range(2):  # what the first attempt did must not make the second begin anew
        outcome = finish(begun.start())
        assert outcome.code == 4 and "Traceback" not in outcome.err, outcome
        assert outcome.err.startswith("error: ")
        assert (begun.workdir / "metrics.jsonl").read_bytes() == rows
    assert examined(begun).code == 4


def damaged_rows(run, name):
    jsonl, table = run.workdir / "metrics.jsonl", run.workdir / "metrics.csv"
    if name == "torn line":
        with open(jsonl, "a") as file:
            file.write('{"step": 33, "samp')
    elif name == "rows beyond":
        for path in (jsonl, table):
            with open(path, "a") as file:
                file.write(path.read_text().splitlines()[-1] + "\n")
    elif name == "garbage beyond":
        for path in (jsonl, table):
            with open(path, "ab") as file:
                file.write(bytes(3) + b"\xff\n\n")
    elif name == "no table":
        table.unlink()
    elif name == "half a table":
        os.truncate(table, 200)
    elif name == "bit flipped in the table":
        flip_bit(table)
    elif name == "no events":
        shutil.rmtree(run.workdir / "tensorboard")
    elif name == "torn events":
        for path in (run.workdir / "tensorboard").iterdir():
            os.truncate(path, path.stat().st_size - 7)
    elif name == "no plan and no environment":
        (run.workdir / "plan.json").unlink()
        (run.workdir / "environment.json").write_text("")


@pytest.mark.parametrize(
    "name",
    [
        "torn line", "rows beyond", "garbage beyond", "no table", "half a table",
        "bit flipped in the table", "no events", "torn events", "no plan and no environment",
    ],
)  # fmt: skip
def test_rows_are_put_right(oracle, begun, name):
    damaged_rows(begun, name)
    examined(begun)
    begun.go(sound=30)
    assert_same(begun, oracle("carry"))


# Each damages rows before every checkpoint that is kept.
LOSSES = {
    "no lines": lambda path: path.unlink(),
    "half the lines": lambda path: os.truncate(path, 500),
    "a bit flipped": lambda path: flip_bit(path, 0.2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_are_lost(oracle, begun, name):
    whole = oracle("carry")
    LOSSES[name](begun.workdir / "metrics.jsonl")
    assert examined(begun).code == 4
    before = content(begun.workdir)
    outcome = begun.go(code=4, says="metrics.jsonl")
    assert len(outcome.err.splitlines()) == 1
    assert content(begun.workdir) == before
    # Killed behind its next row, before a checkpoint knows what it began with.
    begun.go("metrics.mid_line:2", KILLED, further="--allow-change rows", sound=30)
    begun.go()
    rows = begun.rows()
    assert rows == whole.rows()[-len(rows) :] and rows[0]["step"] in ("30", "33")
    assert begun.summary()["weights_digest"] == whole.summary()["weights_digest"]
    assert {"kind": "rows_lost", "step": 30} in begun.summary()["decisions"]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_summary_is_written_again(oracle, tmp_path, text):
    whole = oracle("carry")
    shutil.copytree(whole.workdir, tmp_path / "run")
    run = Run(tmp_path / "run", whole.arguments)
    (run.workdir / "summary.json").write_text(text)
    run.go()
    assert_same(run, whole)


def test_the_lost_rows_of_a_finished_run(oracle, tmp_path):
    whole = oracle("carry")
    shutil.copytree(whole.workdir, tmp_path / "run")
    run = Run(tmp_path / "run", whole.arguments)
    LOSSES["half the lines"](run.workdir / "metrics.jsonl")
    assert examined(run).code == 4
    run.go(code=4, says="metrics.jsonl")
    run.go(says="done: ", further="--allow-change rows")
    lost = {"kind": "rows_lost", "step": whole.summary()["step"]}
    decisions = [*whole.summary()["decisions"], lost]
    changed = {"decisions": decisions, "files": ANY, "digest": ANY}
    assert run.summary() == whole.summary() | changed and run.rows() == []
    run.go(says="finished already")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architectures": ["Bert"]}'])
def test_a_damaged_configuration_is_written_again(oracle, begun, text):
    """The checkpoint says what the run is."""
    (begun.workdir / "config.json").write_text(text)
    begun.go(sound=30)
    assert_same(begun, oracle("carry"))
    config = (oracle("carry").workdir / "config.json").read_bytes()
    assert (begun.workdir / "config.json").read_bytes() == config


def test_a_state_of_another_type_is_not_cast(begun):
    """Files that are whole but say something else, as if another program had written them."""
    for step in begun.steps():
        manifest = begun.checkpoint(step) / "manifest"
        text = manifest.read_bytes().partition(b"\n")[2].replace(b"float32[", b"float16[")
        manifest.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    outcome = begun.go(code=4)
    assert len(outcome.err.splitlines()) <= 3


@pytest.mark.parametrize(
    "damage",
    [lambda path: flip_bit(path, 0.2), flip_bit, lambda path: os.truncate(path, 1000)],
)
def test_damaged_compiled_programs_are_compiled_again(oracle, begin, tmp_path, damage):
    whole, cache = oracle("carry"), tmp_path / "cache"
    shutil.copytree(os.environ["JAX_COMPILATION_CACHE_DIR"], cache)
    damaged = {}
    for path in cache.glob("*-cache"):
        damage(path)
        damaged[path] = path.read_bytes()
    run = begin("carry")
    run.go(JAX_COMPILATION_CACHE_DIR=str(cache))
    assert_same(run, whole)
    assert any(path.read_bytes() != content for path, content in damaged.items())


def _link_to_itself(path):
    path.symlink_to(path.name)


def _device(path):
    path.symlink_to("/dev/zero")


# What is there says nothing that isn't known otherwise.
REPLACED = ("plan.json", "metrics.csv", "summary.json", "report.html", "last_checkpoint.json")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, _link_to_itself, _device])
def test_what_is_no_file_hangs_nothing(oracle, begun, make):
    for name in (*REPLACED, "metrics.jsonl"):
        path, kept = begun.workdir / name, begun.workdir.with_name("kept")
        if path.exists():
            path.rename(kept)
        make(path)
        finish(start("doctor", str(begun.workdir)))
        if name not in REPLACED or make is os.mkdir:
            code = 4 if name == "metrics.jsonl" and make is _link_to_itself else 5
            outcome = finish(begun.start())
            assert outcome.code == code and str(path) in outcome.err, outcome
            assert code == 4 or "move it away" in outcome.err
            os.rmdir(path) if make is os.mkdir else path.unlink()
            if kept.exists():
                kept.rename(path)
    begun.go(sound=30)
    assert_same(begun, oracle("carry"))
