"""CIFAR archives: damaged ones are told, hostile ones write nowhere."""

import gzip
import io
import os
import tarfile
import tracemalloc

import pytest

from adabatch_jax.data.datasets.preparation import cifar, prepare, unpacking
from adabatch_jax.system.errors import StorageError


def _without_a_batch(members):
    del members["cifar-10-batches-bin/data_batch_3.bin"]


def _shortened(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"abc"


def _with_a_label_too_many(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"\x0a" + bytes(3072)


def _with_a_name_twice(members):
    members["cifar-10-batches-bin/batches.meta.txt"] = b"cat\ncat\n"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_with_a_name_twice, "has a name twice in batches.meta.txt"),
        (_without_a_batch, "has no plain file cifar-10-batches-bin/data_batch_3.bin"),
        (_shortened, "have 3 bytes, not a multiple of 3073"),
        (_with_a_label_too_many, "have the label 10, but 10 names"),
    ],
)
def test_damaged_cifar_archives(change, match, miniature, make_tar, tmp_path):
    small = miniature("cifar10")
    members = small.cifar10_members()
    change(members)
    small.write({"cifar-10-binary.tar.gz": make_tar(members)})
    with pytest.raises(StorageError, match=match):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_a_broken_off_cifar_archive(cut, miniature, tmp_path):
    small = miniature("cifar10")
    data = (small.folder / "cifar-10-binary.tar.gz").read_bytes()
    small.write({"cifar-10-binary.tar.gz": data[:cut]})
    with pytest.raises(StorageError, match="is not a whole (gzip file|archive)|has no plain file"):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)


def test_a_hostile_archive_writes_nowhere(miniature, make_tar, tmp_path, files_in):
    small = miniature("cifar10")
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_2.bin")
    link.type, link.linkname = tarfile.SYMTYPE, str(secret)
    hard_link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_4.bin")
    hard_link.type, hard_link.linkname = tarfile.LNKTYPE, "../../secret"
    members = small.cifar10_members()
    for name in ("data_batch_2.bin", "data_batch_4.bin"):
        del members[f"cifar-10-batches-bin/{name}"]
    evil = {
        "../evil": b"evil",
        str(tmp_path / "evil"): b"evil",
        "cifar-10-batches-bin/../../evil": b"evil",
        "../cifar-10-batches-bin/data_batch_2.bin": b"evil",
        "link": link,
        "hard link": hard_link,
    }
    small.write({"cifar-10-binary.tar.gz": make_tar(evil | members)})
    before = files_in(tmp_path)
    with pytest.raises(StorageError, match="has no plain file .*/data_batch_2.bin"):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)
    assert files_in(tmp_path) == before


def test_only_the_named_members_are_read(miniature, make_tar):
    small = miniature("cifar10")
    members = small.cifar10_members()
    extra = {"../evil": b"evil", "cifar-10-batches-bin/readme.html": b"hello"}
    read = cifar.read_members(cifar.CIFAR10, make_tar(extra | members))
    assert {f"cifar-10-batches-bin/{name}": data for name, data in read.items()} == members


def _device(name):
    device = tarfile.TarInfo(name)
    device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 5  # /dev/zero
    return device


def _with_holes(name):
    """A member of a terabyte of zeros that takes a kilobyte."""
    sparse = tarfile.TarInfo(name)
    sparse.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2**40),
        "GNU.sparse.map": "0,0",
    }
    return sparse


@pytest.mark.parametrize("member", [_device, _with_holes])
def test_members_without_an_end_are_not_read(member, miniature, make_tar):
    small = miniature("cifar10")
    members = small.cifar10_members()
    name = "cifar-10-batches-bin/data_batch_2.bin"
    members[name] = member(name)
    archive = make_tar(members)
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        assert found.getmember(name).size == 2**40 or found.getmember(name).ischr()
    with pytest.raises(StorageError, match="has no plain file .*/data_batch_2.bin"):
        cifar.read_members(cifar.CIFAR10, archive)


def _headers(kind, *contents):
    """Members of which each only describes the next one."""
    for content in contents:
        header = tarfile.TarInfo("header")
        header.type, header.size = kind, len(content)
        yield header.tobuf() + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    ("kind", "contents"),
    [
        (tarfile.XHDTYPE, [b"9" * 5000 + b" size=5\n"]),
        (tarfile.XHDTYPE, [b"28 GNU.sparse.map=0,zz,3,4,5\n"]),
        (tarfile.GNUTYPE_LONGNAME, [b"name"] * 2000),
    ],
)
def test_headers_that_tarfile_fails_at(kind, contents):
    data = b"".join(_headers(kind, *contents)) + tarfile.TarInfo("file").tobuf()
    with pytest.raises(StorageError, match="is not a whole archive"):
        cifar.read_members(cifar.CIFAR10, gzip.compress(data))


def test_a_bomb_is_not_unpacked_to_its_end(miniature, make_tar, monkeypatch):
    members = miniature("cifar10").cifar10_members()
    archive = make_tar({"cifar-10-batches-bin/readme.html": bytes(3_000_000)} | members)
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 2_000_000)
    with pytest.raises(StorageError, match="unpacks to more than 2,000,000 bytes"):
        cifar.read_members(cifar.CIFAR10, archive)


def test_a_file_that_is_too_large_is_not_read(miniature, tmp_path):
    small = miniature("cifar10")
    os.truncate(small.folder / "cifar-10-binary.tar.gz", 2**40)
    with pytest.raises(StorageError, match="tar.gz is not the original .* 1,099,511,627,776 bytes"):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)


def test_no_more_is_unpacked_than_allowed():
    bomb = gzip.compress(bytes(2**26))  # 64 MiB of zeros in 65 kB
    tracemalloc.start()
    with pytest.raises(StorageError, match="bomb.gz is no original"):
        unpacking.gunzipped("bomb.gz", bomb, max_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
