"""CIFAR archives: damaged ones are told, strange ones write nowhere."""

import pytest

from adabatch_jax.data.datasets.preparation import prepare
from adabatch_jax.system.errors import StorageError


def _without_a_batch(members):
    del members["cifar-10-batches-bin/data_batch_3.bin"]


def _shortened(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"abc"


def _with_a_label_too_many(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"\x0a" + bytes(3072)


def _with_a_name_twice(members):
    names = members["cifar-10-batches-bin/batches.meta.txt"]
    members["cifar-10-batches-bin/batches.meta.txt"] = names.replace(b"class 1", b"class 0")


@pytest.mark.parametrize(
    "change", [_with_a_name_twice, _without_a_batch, _shortened, _with_a_label_too_many]
)
def test_damaged_cifar_archives(change, miniature, make_tar, tmp_path, files_in):
    small = miniature("cifar10")
    members = small.cifar10_members()
    change(members)
    small.write({"cifar-10-binary.tar.gz": make_tar(members)})
    with pytest.raises(StorageError, match=f"'cifar10' .*{tmp_path / 'data'}.*: "):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)
    assert files_in(tmp_path / "data") == []


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_a_broken_off_cifar_archive(cut, miniature, tmp_path):
    small = miniature("cifar10")
    data = (small.folder / "cifar-10-binary.tar.gz").read_bytes()
    small.write({"cifar-10-binary.tar.gz": data[:cut]})
    with pytest.raises(StorageError, match=f"'cifar10' .*{tmp_path / 'data'}.*: "):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)


def test_members_that_are_not_named_write_nowhere(miniature, make_tar, tmp_path, files_in):
    small = miniature("cifar10")
    evil = {
        "../evil": b"evil",
        str(tmp_path / "evil"): b"evil",
        "cifar-10-batches-bin/../../evil": b"evil",
        "../cifar-10-batches-bin/data_batch_2.bin": b"evil",
    }
    small.write({"cifar-10-binary.tar.gz": make_tar(evil | small.cifar10_members())})
    before = files_in(tmp_path)
    path = prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)
    assert [file for file in files_in(tmp_path) if not file.is_relative_to(path)] == before
