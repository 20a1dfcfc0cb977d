"""Folders in an object store: which addresses are taken, conditions, and who works there."""

import threading
import time

import pytest

from adabatch_jax.system.errors import StorageError, UsageError
from adabatch_jax.system.object_lock import LOCK, ObjectLock
from adabatch_jax.system.object_store import ObjectFolder, is_url, parsed
from tests.memory_store import MemoryStore

URL = "gs://bucket/runs/a"


@pytest.fixture
def store(monkeypatch):
    return MemoryStore(monkeypatch)


@pytest.fixture
def folder(store):
    return ObjectFolder(URL, "--workdir")


def lock(folder, wait_seconds=0.0, take_over=False, beat_seconds=0.05, silent_seconds=0.6):
    flags = ("--workdir", wait_seconds, take_over)
    return ObjectLock(folder, URL, *flags, beat_seconds, silent_seconds)


def died(folder):
    """A lock whose process was killed: no beat comes any more, and nothing was put back."""
    left = lock(folder)
    left._take()
    return left


@pytest.mark.parametrize("path", ["runs/a", "/data/gs/x", "a:b", "./gs:/b/x", "C:/x", "gs:x", ""])
def test_a_path_of_this_machine_is_no_address(path):
    assert not is_url(path)


@pytest.mark.parametrize(
    "url, names",
    [
        ("s3://b/x", ("s3fs-fuse", "gs://bucket/folder")),
        ("az://b/x", ("mount the bucket",)),
        ("file:///b/x", ("mount the bucket",)),
        ("gs:/b/x", ("'gs://bucket/folder'",)),  # what pathlib makes of one
        ("gs:///b/x", ("'gs://bucket/folder'",)),
        ("gs://b", ("no folder",)),
        ("gs://b/", ("no folder",)),
        ("gs://b/x//y", ("no folder",)),
        ("gs://b/x/..", ("no folder",)),
    ],
)
def test_another_address_is_refused_in_one_sentence_with_the_way_out(url, names):
    assert is_url(url)
    with pytest.raises(UsageError) as caught:
        parsed(url, "--workdir")
    sentence = str(caught.value)
    assert sentence.startswith(f"--workdir: {url!r}") and sentence.endswith(".")
    assert all(name in sentence for name in names)


def test_an_object_is_replaced_in_the_state_that_was_seen_and_in_no_other(folder):
    nothing = folder.see("x")
    assert nothing.content is None
    first = folder.replace("x", b"1", nothing.state)
    assert first and not folder.replace("x", b"2", nothing.state)
    assert folder.replace("x", b"3", first) and not folder.replace("x", b"4", first)
    assert folder.see("x").content == b"3"
    assert not folder.replace("x", None, first) and folder.replace("x", None, folder.see("x").state)
    assert folder.names() == []


def test_a_folder_is_not_its_neighbours(folder, store):
    neighbours = ["runs/a", "runs/ab/x", "runs/a0", "runs/b/x", "runs/", "other/runs/a/x"]
    store.fill("bucket/", dict.fromkeys([*neighbours, "runs/a/x", "runs/a/y/z"], b""))
    assert folder.names() == ["x", "y/z"]
    # A server that knows no ranges gives all.
    folder._range = type(folder._range)()
    assert folder.names() == ["x", "y/z"]


def test_many_objects_at_once(folder, store):
    contents = {f"d/{number}": b"%d" % number for number in range(20)}
    folder.write({name: lambda content=content: content for name, content in contents.items()})
    assert dict(folder.read([*contents, "not there"])) == contents
    folder.delete([*contents][:19])
    assert store.objects() == {"bucket/runs/a/d/19": b"19"}


def test_of_many_starts_at_once_one_has_the_folder(folder):
    locks = [lock(folder, silent_seconds=60) for _ in range(8)]
    taken, refused, go = [], [], threading.Barrier(len(locks))

    def start(own):
        go.wait()
        try:
            own.__enter__()
            taken.append(own)
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(own,)) for own in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(taken) == 1 and len(refused) == 7
    assert all(f"another process is training in {URL!r}" in sentence for sentence in refused)
    taken[0].check()
    taken[0].__exit__()
    assert folder.names() == []
    with lock(folder) as again:
        again.check()


def test_a_killed_owner_is_followed_when_it_was_silent_for_long(folder, capsys):
    gone = died(folder)
    began = time.monotonic()
    with lock(folder) as own:
        assert 0.6 <= time.monotonic() - began < 5
        own.check()
        with pytest.raises(StorageError, match="another process has taken gs://bucket/runs/a over"):
            gone.check()
        gone._ended.set()
        gone._beats.start()
        gone.__exit__()  # which leaves the other's alone
        own.check()
    assert "waiting up to 1 s for a sign of life" in capsys.readouterr().err


def test_a_living_owner_keeps_the_folder_however_long_the_other_waits(folder):
    with lock(folder) as own:
        began = time.monotonic()
        with pytest.raises(UsageError, match="another process is training"):
            lock(folder, wait_seconds=1.5).__enter__()
        assert time.monotonic() - began >= 1.5
        own.check()


def test_who_knows_better_takes_over_at_once(folder):
    with lock(folder) as own:
        with lock(folder, take_over=True, silent_seconds=60) as other:
            other.check()
            with pytest.raises(StorageError):
                own.check()
    assert folder.names() == []


def test_a_store_without_conditions_or_states_still_tells_two_apart(folder, monkeypatch):
    """As the emulator is: every write goes through, and reads name no state."""
    write, see = folder._store.write, folder.see
    monkeypatch.setattr(
        folder._store, "write", lambda name, content, if_equal=None: write(name, content)
    )
    monkeypatch.setattr(folder, "see", lambda name: type(see(name))(see(name).content, None))
    with lock(folder) as own:
        with pytest.raises(UsageError):
            lock(folder, wait_seconds=0.3).__enter__()
        own.check()
        folder.write({LOCK: lambda: b"another's"})
        with pytest.raises(StorageError):
            own.check()
