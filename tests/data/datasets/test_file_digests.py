"""Digests of prepared files: kept beside them; sizes and times save a rereading, no more."""

import json
import os
import shutil

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tensorflow_datasets.proto import tf_example_pb2

from adabatch_jax.data.datasets import file_digests as module
from adabatch_jax.data.datasets import kept_facts
from adabatch_jax.data.datasets.file_digests import file_digests
from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.data.sources import contents_digests, in_memory
from adabatch_jax.data.tfds_images import check_dataset, tfds_source
from adabatch_jax.system.errors import StorageError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for number in range(3):
        (tmp_path / "data" / f"shard-{number}").write_bytes(bytes([number]) * 1000)
    return tmp_path / "data"


@pytest.fixture
def large(monkeypatch):
    """From now on any file is too large to be read each time."""
    monkeypatch.setattr(module, "_BYTES_READ_EACH_TIME", 0)


@pytest.fixture
def num_read(monkeypatch):
    """How many files were read so far: `num_read()`."""
    read, entry = [], module.hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda *of: read.append(of[0].name) or entry(*of)
    )
    return lambda: len(read)


def shards(folder):
    return sorted(folder.glob("shard*"))


def change(path, *, keep_time):
    """Other contents of the same size."""
    stat = path.stat()
    path.write_bytes(b"x" * stat.st_size)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_large_files_are_read_once(folder, large, num_read):
    first = file_digests(shards(folder), keep=True)
    assert num_read() == 3 and len(set(first.digests)) == 3
    assert file_digests(shards(folder)).digests == first.digests
    assert num_read() == 3
    os.utime(shards(folder)[1])
    assert file_digests(shards(folder), keep=True) == first and num_read() == 4
    assert file_digests(shards(folder)) == first and num_read() == 4
    moved = folder.rename(folder.with_name("elsewhere"))
    assert file_digests(shards(moved)).digests == first.digests and num_read() == 4


def test_small_files_are_read_each_time(folder, num_read):
    before = file_digests(shards(folder), keep=True)
    change(shards(folder)[1], keep_time=True)
    after = file_digests(shards(folder), keep=True)
    assert num_read() == 6
    assert [a == b for a, b in zip(before.digests, after.digests, strict=True)] == [
        True,
        False,
        True,
    ]
    assert after.changed == [shards(folder)[1]]
    # What was prepared stays known, until somebody says that it was meant to change.
    assert file_digests(shards(folder), keep=True).changed == [shards(folder)[1]]
    (folder / "digests.json").unlink()
    assert file_digests(shards(folder), keep=True).changed == []


def test_the_time_of_a_large_one_may_hide_a_change_but_not_when_all_is_read(folder, large):
    before = file_digests(shards(folder), keep=True)
    change(shards(folder)[1], keep_time=True)
    assert file_digests(shards(folder)) == before
    assert file_digests(shards(folder), read_all=True).changed == [shards(folder)[1]]
    change(shards(folder)[2], keep_time=False)
    assert file_digests(shards(folder)).changed == [shards(folder)[2]]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "{}", '{"files": 3, "digest": "0"}', "flip", "dir"]
)
def test_what_is_kept_is_verified_too(folder, large, num_read, damage):
    before = file_digests(shards(folder), keep=True)
    kept = folder / "digests.json"
    if damage == "flip":
        digest = before.digests[0]
        other = digest.replace(digest[0], "f" if digest[0] != "f" else "0", 1)
        kept.write_text(kept.read_text().replace(digest, other))
    elif damage == "dir":
        kept.unlink()
        kept.mkdir()
    else:
        kept.write_text(damage)
    after = file_digests(shards(folder), keep=True)
    assert (after.digests, after.changed, num_read()) == (before.digests, [], 6)
    assert file_digests(shards(folder)).digests == before.digests and num_read() == 6


def test_of_a_folder_that_cannot_be_written_they_are_kept_elsewhere(
    folder, large, num_read, monkeypatch
):
    write = kept_facts.write_sealed

    def refuse(path, content):
        if path.parent == folder:
            raise StorageError("read-only")
        write(path, content)

    monkeypatch.setattr(kept_facts, "write_sealed", refuse)
    first = file_digests(shards(folder), keep=True)
    assert file_digests(shards(folder)).digests == first.digests and num_read() == 3
    assert not (folder / "digests.json").exists()
    change(shards(folder)[0], keep_time=False)
    found = file_digests(shards(folder))
    assert found.changed == [shards(folder)[0]] and found.kept_in.is_file()


def test_a_file_that_cannot_be_read(folder):
    with pytest.raises(StorageError, match="cannot read .*shard-9"):
        file_digests([*shards(folder), folder / "shard-9"])


def test_they_are_kept_when_a_dataset_is_prepared(digits_dir):
    (kept,) = digits_dir.rglob("digests.json")
    content = json.loads(kept.read_text())["files"]
    assert sorted(content) == sorted(path.name for path in kept.parent.glob("*array_record*"))
    source = tfds_source("digits", "train", digits_dir)
    assert source.changed_files() == []


@pytest.fixture
def data_dir(digits_dir, tmp_path):
    shutil.copytree(digits_dir, tmp_path / "data")
    return tmp_path / "data"


def test_of_a_split_paths_and_times_make_no_difference(digits_dir, data_dir):
    def digest(split, **options):
        return tfds_source("digits", split, data_dir, **options).digest()

    assert digest("train") == tfds_source("digits", "train", digits_dir).digest()
    others = ["train", "test", "train[:100]", "train[100:200]", "train+test"]
    assert len({*map(digest, others), digest("train", image_size=9)}) == 6
    assert digest("train") == digest("train[:100%]")


def test_other_files_of_the_same_examples_hold_the_same(digits_dir, data_dir):
    for path in data_dir.rglob("*array_record*"):
        records = ArrayRecordReader(str(path)).read_all()
        writer = ArrayRecordWriter(str(path), "group_size:7")
        for record in records:
            writer.write(record)
        writer.close()
    ours, theirs = (tfds_source("digits", "train", folder) for folder in (digits_dir, data_dir))
    assert not set(contents_digests(ours)) & set(contents_digests(theirs))
    assert set(contents_digests(in_memory(ours))) & set(contents_digests(in_memory(theirs)))
    (text,) = theirs.changed_files()
    assert "digits-train" in text and "--overwrite" in text and "digests.json" in text


def test_the_doctor_compares_contents(data_dir, large):
    (path,) = data_dir.rglob("digits-test*")
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert tfds_source("digits", "test", data_dir).changed_files() == []  # believed
    with pytest.raises(StorageError, match="digits-test.* isn't what was prepared"):
        check_dataset("digits", data_dir)


def test_records_are_the_same_bytes_whatever_process_prepares_them(miniature, tmp_path):
    """By itself protobuf shuffles the features of a record, anew in each process."""
    original, folder = miniature("cifar100"), tmp_path / "data"
    prepare("cifar100", folder, original.folder, checksums=original.checksums)
    for path in folder.rglob("*array_record*"):
        for record in ArrayRecordReader(str(path)).read_all():
            example = tf_example_pb2.Example.FromString(record)
            assert record == example.SerializeToString(deterministic=True)
