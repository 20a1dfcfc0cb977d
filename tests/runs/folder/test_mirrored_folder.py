"""A run in an object store, which is in memory here: killed at every instant, damaged, shared."""

import hashlib
import os
import shutil
import tempfile

import pytest
import tensorstore

from adabatch_jax.config.settings import Keep
from adabatch_jax.runs.checkpoints.manifest import Damaged, write_manifest
from adabatch_jax.runs.checkpoints.verifying import (
    check_checkpoint,
    committed_steps,
    read_checkpoint,
)
from adabatch_jax.runs.folder.folder_reading import find_checkpoint, position_of_rows
from adabatch_jax.runs.folder.lock import lock_owner
from adabatch_jax.runs.folder.opened_folder import locked_folder, opened
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import AdabatchError, StorageError, UsageError
from tests.memory_store import MemoryStore
from tests.run_folders import write_checkpoint
from tests.runs.small_run import N, reproducible, train

URL, PATH = "gs://bucket/run", "bucket/run/"
PLAN = make_plan("6 x2 every 2ep max 12", N, "4ep")
SETTINGS = {"checkpoint_every": "5st", "keep": Keep(newest=2)}


@pytest.fixture
def store(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where copies lie
    return MemoryStore(monkeypatch)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return train(PLAN, tmp_path_factory.mktemp("local"), **SETTINGS)


def in_store(**changes):
    return train(PLAN, URL, **{**SETTINGS, **changes})


def assert_equal(result, local):
    for key in ("weights_digest", "examples_digest", "step"):
        assert result.summary[key] == local.summary[key]
    assert reproducible(result.history) == reproducible(local.history)


def test_a_run_in_a_store_is_the_one_in_a_folder(store, local, tmp_path):
    assert_equal(in_store(), local)
    names = store.objects(PATH)
    assert {"config.json", "metrics.jsonl", "metrics.csv", "summary.json"} <= names.keys()
    assert not [name for name in names if name.startswith(".")]  # nobody is at work any more
    assert [*tmp_path.iterdir()] == []
    with opened(URL) as folder:
        assert len(committed_steps(folder / "checkpoints")) == 2
        for step in committed_steps(folder / "checkpoints"):
            check_checkpoint(folder / "checkpoints" / str(step))
    writes = len(store.writes)
    again = in_store()
    assert again.start_step == PLAN.num_steps
    assert {name for name, _ in store.writes[writes:]} <= {PATH + ".lock", PATH + ".beat"}


def test_killed_at_any_instant_it_goes_on_to_the_same_end(store, local, tmp_path):
    in_store()
    writes, there, newest = list(store.writes), {}, 0
    resumed = set()
    for number, (name, content) in enumerate(writes):
        if content is None:
            there.pop(name, None)
        else:
            there[name] = content
        left = {key.removeprefix(PATH): value for key, value in there.items()}
        store.fill(PATH, left)
        with opened(URL) as folder:
            found, rejected = find_checkpoint(folder.path)
            assert not rejected, (number, name)
            step = 0 if found is None else found.step
            assert step >= newest, (number, name)
            newest = step
            if found is not None:
                assert position_of_rows(folder.path, found) is not None
        kind = (newest, name.split("/")[-1] if "state" not in name else "state", content is None)
        # Going on takes half a second: once for each kind of place.
        if kind not in resumed and not name.startswith((PATH + "curves", PATH + "tensorboard")):
            resumed.add(kind)
            if len(resumed) % 6 == 1:
                store.fill(PATH, {key: value for key, value in left.items() if key[0] != "."})
                assert_equal(in_store(), local)
    assert newest == PLAN.num_steps


def test_what_a_kill_left_of_a_save_is_no_checkpoint_and_goes(store, local):
    in_store(on_step=lambda step, *_: step == 12)
    objects = store.objects(PATH)
    half = {name: content for name, content in objects.items() if name != "checkpoints/12/manifest"}
    store.fill(PATH, half)
    result = in_store()
    assert result.start_step == 10
    assert_equal(result, local)
    assert not [name for name in store.objects(PATH) if name.startswith("checkpoints/12/")]


def test_a_damaged_object_is_noticed_and_the_checkpoint_before_is_taken(store, local):
    in_store(on_step=lambda step, *_: step == 12)
    objects = store.objects(PATH)
    data = max(
        (n for n in objects if n.startswith("checkpoints/12/state/")), key=lambda n: len(objects[n])
    )
    flipped = bytearray(objects[data])
    flipped[len(flipped) // 2] ^= 1
    store.fill(PATH, objects | {data: bytes(flipped)})
    result = in_store()
    assert result.start_step == 10
    assert_equal(result, local)
    names = store.objects(PATH)
    assert [name for name in names if name.startswith("checkpoints/bad-12/")]
    assert not [name for name in names if name.startswith("checkpoints/12/")]


def test_who_lost_the_folder_commits_nothing_more(store):
    def lose(step, *_):
        if step == 7:
            store.opened(PATH).write(".lock", b"another's").result()

    with pytest.raises(StorageError, match="another process has taken gs://bucket/run over"):
        in_store(on_step=lose)
    assert "checkpoints/10/manifest" not in store.objects(PATH)
    assert store.objects(PATH)[".lock"] == b"another's"


def test_errors_name_the_store_and_not_the_copy(store, tmp_path):
    in_store()
    store.fill(PATH, store.objects(PATH) | {"metrics.jsonl": b"{}\n"})
    with pytest.raises(AdabatchError) as caught:
        in_store()
    assert "gs://bucket/run/metrics.jsonl" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


class Refused:
    def result(self):
        raise ValueError("PERMISSION_DENIED: no access [source locations='x']\nmore")


def test_a_store_that_says_no_is_one_sentence(store, monkeypatch):
    def opens(spec):
        there = store.folder(spec)
        there.write = lambda *_, **__: Refused()
        return there

    monkeypatch.setattr(tensorstore.KvStore, "open", opens)
    with pytest.raises(StorageError) as caught:
        in_store()
    assert str(caught.value) == "cannot delete gs://bucket/run/.beat: PERMISSION_DENIED: no access."


def test_two_at_once_are_told_apart_and_read_by_anyone(store):
    with opened(URL) as first, locked_folder(first):
        with opened(URL) as second, pytest.raises(UsageError, match="is training in 'gs://bucket/"):
            with locked_folder(second):
                pass
        with opened(URL) as reader:
            assert lock_owner(reader.path).pid == os.getpid()


def test_the_first_of_several_processes_adds_the_others_parts(store):
    """Each writes its part of a checkpoint in a copy of its own; the manifest lists all."""
    with opened(URL) as first, opened(URL) as other:
        checkpoint, there = write_checkpoint(first.path, 30), other / "checkpoints/30"
        for number, copy in enumerate((first, other)):
            part = copy / f"checkpoints/30.orbax-checkpoint-tmp-0a/state/{number}"
            part.mkdir(parents=True)
            (part / "data").write_bytes(b"%d" % number * 1000)
        files = {
            f"state/{number}/data": (1000, hashlib.sha256(b"%d" % number * 1000).hexdigest())
            for number in range(2)
        }
        shutil.rmtree(checkpoint / "state")
        run = dict(read_checkpoint(checkpoint).run)
        write_manifest(checkpoint, run, {}, files)
        for copy in (first, other):
            folder = copy / "checkpoints/30.orbax-checkpoint-tmp-0a"
            copy.push_part(folder, copy / "checkpoints/30")
        other.drop(other / "checkpoints/30.orbax-checkpoint-tmp-0a")
        os.rename(first / "checkpoints/30.orbax-checkpoint-tmp-0a/state", checkpoint / "state")
        (first / "checkpoints/30.orbax-checkpoint-tmp-0a").rmdir()
        first.push()
        with pytest.raises(Damaged, match="state/1/data is missing"):
            check_checkpoint(checkpoint)
        first.complete(first / "checkpoints")
        check_checkpoint(checkpoint)
        assert not there.exists()
        other.complete(there)
        check_checkpoint(there)
        shutil.rmtree(checkpoint)
        writes = len(store.writes)
        first.push()
        assert store.objects(PATH) == {}
        assert store.writes[writes] == (PATH + "checkpoints/30/manifest", None)


def test_a_copy_that_a_kill_left_goes_with_the_next_start_and_one_in_use_stays(store, tmp_path):
    left = tmp_path / "adabatch_jax-copy-left"
    left.mkdir()
    (left / "large").write_bytes(b"x")
    with opened(URL) as first, opened(URL) as second:
        assert not left.exists()
        assert first.path.is_dir() and second.path.is_dir() and first.path != second.path


def test_a_folder_of_something_else_is_neither_copied_nor_written_to(store, tmp_path):
    foreign = {"images/1.png": b"x", "images/2.png": b"y"}
    store.fill(PATH, foreign)
    with pytest.raises(UsageError, match="'gs://bucket/run' holds 'images' but no run"):
        in_store()
    assert store.objects(PATH) == foreign


def test_no_object_leads_out_of_the_copy(store, tmp_path):
    store.fill(PATH, {"config.json": b"{}", "../out": b"x", "a//b": b"x", "tensorboard/": b""})
    with opened(URL) as folder:
        assert [path.name for path in folder.path.rglob("*")] == ["config.json"]
        assert [path.name for path in folder.path.parent.iterdir()] == ["run"]


def test_a_copy_becomes_what_is_there_now(store):
    in_store()
    with opened(URL) as folder:
        objects = store.objects(PATH)
        newest = str(PLAN.num_steps)
        kept = {n: c for n, c in objects.items() if not n.startswith(f"checkpoints/{newest}/")}
        del kept["summary.json"]
        store.fill(PATH, kept | {"plan.json": b"{}"})
        folder.fetch()
        here = {
            path.relative_to(folder.path).as_posix(): path.read_bytes()
            for path in folder.path.rglob("*")
            if path.is_file()
        }
        assert here == kept | {"plan.json": b"{}"}
