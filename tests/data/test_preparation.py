"""Preparing: the same data as the original files, whole or not at all, quick without network."""

import contextlib
import fcntl
import functools
import gzip
import hashlib
import http.server
import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.data.preparation import Progress, cifar, network, prepare
from adabatch_jax.data.preparation.digits import is_every_fifth_of_its_class, pixels_from_counts
from adabatch_jax.data.preparation.local import DEBIAN_FASHION_MNIST
from adabatch_jax.data.preparation.originals import with_gzip_header
from adabatch_jax.data.preparation.staging import staging_folder
from adabatch_jax.data.prepared import is_prepared
from adabatch_jax.data.tfds_sources import in_memory, tfds_source
from adabatch_jax.errors import StorageError, UsageError


def as_sorted_examples(images, labels):
    """Order in prepared data is tfds's own: compare as sorted lists."""
    return sorted(
        (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def prepared_examples(name, split, data_dir):
    arrays = in_memory(tfds_source(name, split, data_dir)).arrays
    return as_sorted_examples(arrays["image"], arrays["label"])


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# digits


def digits_rows():
    root = importlib.util.find_spec("sklearn").submodule_search_locations[0]
    path = os.path.join(root, "datasets", "data", "digits.csv.gz")
    with gzip.open(path, "rt") as file:
        return [[int(float(value)) for value in line.split(",")] for line in file]


def test_digits_are_split_by_class_in_file_order(digits_dir):
    expected = {"train": [], "test": []}
    seen = [0] * 10
    for row in digits_rows():
        label = row[-1]
        expected["test" if seen[label] % 5 == 4 else "train"].append(row)
        seen[label] += 1
    for split, rows in expected.items():
        arrays = in_memory(tfds_source("digits", split, digits_dir)).arrays
        counts = (arrays["image"].reshape(-1, 64).astype(int) * 16 + 127) // 255
        np.testing.assert_array_equal(counts, [row[:-1] for row in rows])
        np.testing.assert_array_equal(arrays["label"], [row[-1] for row in rows])
    assert [len(rows) for rows in expected.values()] == [1442, 355]


def test_digits_pixels_are_invertible_and_nearest():
    counts = np.arange(17)
    pixels = pixels_from_counts(counts.astype(np.uint8))
    assert pixels.dtype == np.uint8 and (pixels[0], pixels[-1]) == (0, 255)
    assert np.abs(pixels - counts * 255 / 16).max() <= 0.5
    np.testing.assert_array_equal((pixels.astype(int) * 16 + 127) // 255, counts)


def test_every_fifth_is_counted_within_each_class():
    labels = np.array([7] * 10 + [3] * 4 + [7] + [3])
    assert np.flatnonzero(is_every_fifth_of_its_class(labels)).tolist() == [4, 9, 15]


def test_digits_are_prepared_without_importing_scikit_learn_or_tensorflow(tmp_path):
    code = (
        "import sys; from adabatch_jax.data.preparation import prepare;"
        "prepare('digits', sys.argv[1]);"
        "assert not {'sklearn', 'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_without_scikit_learn_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "adabatch_jax\[train\]"'):
        prepare("digits", tmp_path)


# the stock datasets in miniature


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_folder_with_original_files_becomes_the_stock_dataset(name, miniature, tmp_path):
    import tensorflow_datasets as tfds

    small = miniature(name)
    reports = []
    path = prepare(name, tmp_path / "data", small.folder, reports.append, checksums=small.checksums)
    stock = tfds.builder(name, data_dir=tmp_path / "data", file_format="array_record")
    assert Path(stock.data_dir) == path
    for split, num_examples in small.sizes.items():
        assert stock.info.splits[split].num_examples == num_examples
        expected = as_sorted_examples(small.images[split], small.labels[split])
        assert prepared_examples(name, split, tmp_path / "data") == expected
        examples = list(stock.as_data_source(split))
        opened = as_sorted_examples(
            [example["image"] for example in examples], [example["label"] for example in examples]
        )
        assert opened == expected
        assert Progress(f"Writing {split}", num_examples, num_examples, "examples") in reports


def test_cifar100_keeps_ids_names_and_coarse_labels(miniature, tmp_path):
    import tensorflow_datasets as tfds

    small = miniature("cifar100")
    prepare("cifar100", tmp_path, small.folder, checksums=small.checksums)
    stock = tfds.builder("cifar100", data_dir=tmp_path, file_format="array_record")
    assert stock.info.features["label"].names[99] == "fine 99"
    assert stock.info.features["coarse_label"].names[19] == "coarse 19"
    for example in stock.as_data_source("test"):
        index = int(example["id"].decode().removeprefix("test_"))
        np.testing.assert_array_equal(example["image"], small.images["test"][index])
        assert example["label"] == small.labels["test"][index]
        assert example["coarse_label"] == small.coarse_labels["test"][index]


def test_the_checksums_that_tfds_knows_are_required(miniature, tmp_path):
    small = miniature("cifar10")
    found = small.checksums["cifar-10-binary.tar.gz"]
    wanted = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    with pytest.raises(StorageError, match=f"binary.tar.gz is not .* sha256 is {found}, .*{wanted}"):
        prepare("cifar10", tmp_path / "data", small.folder)
    assert not is_prepared("cifar10", tmp_path / "data")
    assert files_in(tmp_path / "data") == []


def test_a_missing_original_is_named(miniature, tmp_path):
    small = miniature("mnist")
    (small.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match="has no file t10k-labels-idx1-ubyte.gz; the original"):
        prepare("mnist", tmp_path / "data", small.folder, checksums=small.checksums)
    with pytest.raises(UsageError, match="elsewhere with the original files isn't there"):
        prepare("mnist", tmp_path / "data", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"not gzip", "is not a whole gzip file"),
        (gzip.compress(bytes(1000))[:-9], "is not a whole gzip file"),
        (gzip.compress(b""), "is not an idx file"),
        (gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "is not an idx file"),
        (gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 50, 28, 28)), "has 0 bytes of values"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "bytes of values for an array"),
        (gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abc"), "must hold images of 28"),
        (
            gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 1, 28, 28) + bytes(784)),
            "has 1 images and train-labels-idx1-ubyte.gz has 50 labels",
        ),
    ],
)
def test_damaged_idx_files(data, match, miniature, tmp_path):
    small = miniature("mnist")
    small.write({"train-images-idx3-ubyte.gz": data})
    with pytest.raises(StorageError, match=match):
        prepare("mnist", tmp_path / "data", small.folder, checksums=small.checksums)


def _without_a_batch(members):
    del members["cifar-10-batches-bin/data_batch_3.bin"]


def _shortened(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"abc"


def _with_a_label_too_many(members):
    members["cifar-10-batches-bin/test_batch.bin"] = b"\x0a" + bytes(3072)


@pytest.mark.parametrize(
    ("change", "match"),
    [
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
    with pytest.raises(StorageError, match="is not a whole archive|has no plain file"):
        prepare("cifar10", tmp_path / "data", small.folder, checksums=small.checksums)


def test_a_hostile_archive_writes_nowhere(miniature, make_tar, tmp_path):
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


# Fashion-MNIST from Debian


@pytest.mark.parametrize(("split", "prefix", "size"), [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_fashion_mnist_equals_the_original_files(split, prefix, size, fashion_mnist_dir):
    images = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
    raw_images = [images[16 + 784 * i : 16 + 784 * (i + 1)] for i in range(size)]
    expected = sorted(zip(raw_images, labels[8:], strict=True))
    assert prepared_examples("fashion_mnist", split, fashion_mnist_dir) == expected


def test_fashion_mnist_opens_as_the_stock_dataset(fashion_mnist_dir):
    import tensorflow_datasets as tfds

    stock = tfds.builder("fashion_mnist", data_dir=fashion_mnist_dir, file_format="array_record")
    assert {name: split.num_examples for name, split in stock.info.splits.items()} == {
        "train": 60_000,
        "test": 10_000,
    }
    assert stock.info.features["label"].names[-1] == "Ankle boot"
    assert stock.as_data_source("test")[0]["image"].shape == (28, 28, 1)


def test_a_gzip_header_is_restored():
    original = gzip.compress(b"data", mtime=1504176606)
    stripped = original[:4] + bytes(4) + original[8:]
    restored = with_gzip_header("some-file.gz", stripped, 1504176606)
    assert restored[:10] == b"\x1f\x8b\x08\x08" + original[4:8] + b"\x00\x03"
    assert restored[10:] == b"some-file\0" + original[10:]
    assert with_gzip_header("some-file.gz", restored, 1) == restored
    assert with_gzip_header("some-file.gz", b"other", 1) == b"other"


# whole or not at all


def test_prepared_data_is_left_alone(digits_dir, monkeypatch):
    import adabatch_jax.data.preparation.preparing as preparing

    monkeypatch.setattr(preparing, "_prepare", lambda *arguments: pytest.fail("prepared again"))
    assert prepare("digits", digits_dir) == digits_dir / "digits" / "1.0.0"


def test_overwrite_replaces_damaged_data(tmp_path):
    path = prepare("digits", tmp_path)
    for file in path.glob("*.array_record*"):
        file.write_bytes(b"")
    assert prepare("digits", tmp_path) == path
    assert prepare("digits", tmp_path, overwrite=True) == path
    assert len(in_memory(tfds_source("digits", "train", tmp_path))) == 1442
    assert list((tmp_path / ".preparing").iterdir()) == []


def test_a_kill_leaves_nothing_that_looks_prepared(tmp_path):
    code = (
        "import os, sys; from adabatch_jax.data.preparation import prepare;"
        "prepare('digits', sys.argv[1],"
        " progress=lambda progress: progress.done and os.kill(os.getpid(), 9))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    assert killed.returncode == -signal.SIGKILL
    assert not is_prepared("digits", tmp_path)
    (left,) = (tmp_path / ".preparing").iterdir()
    os.utime(left, (time.time() - 3600,) * 2)
    prepare("digits", tmp_path)
    assert list((tmp_path / ".preparing").iterdir()) == []


def test_a_folder_in_use_is_not_cleaned_away(tmp_path):
    with staging_folder(tmp_path) as mine:
        os.utime(mine, (time.time() - 3600,) * 2)
        with staging_folder(tmp_path) as other:
            assert mine.is_dir() and other != mine
        assert mine.is_dir()
        with open(mine / "in-use") as lock, pytest.raises(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not mine.exists()


def test_two_processes_may_prepare_at_once(tmp_path):
    command = [sys.executable, "-m", "adabatch_jax.prepare", "digits", "--data-dir", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    assert len(in_memory(tfds_source("digits", "train", tmp_path))) == 1442
    assert list((tmp_path / ".preparing").iterdir()) == []


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="'digits' can't be written to .*file.*: Not a directory"):
        prepare("digits", tmp_path / "file")


def test_a_version_that_cannot_be_prepared(tmp_path):
    with pytest.raises(UsageError, match="version 1.0.0 of 'cifar10' can't .* only 3.0.2"):
        prepare("cifar10:1.0.0", tmp_path)


# network


@pytest.mark.parametrize("name", ["cifar10", "mnist", "kmnist"])
def test_without_a_network_it_fails_at_once(name, offline, tmp_path):
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"'{name}' has to be downloaded and .* can't be reached"):
        prepare(name, tmp_path)
    assert time.monotonic() - started < 10


def test_a_hanging_name_server_is_not_waited_for(monkeypatch, offline):
    fail = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: time.sleep(5) or fail())
    started = time.monotonic()
    with pytest.raises(UsageError, match="host.invalid can't be reached .no answer."):
        network.require_reachable("x", ["http://host.invalid/file"], seconds=0.2)
    assert time.monotonic() - started < 2


def test_a_host_that_never_answers_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        started = time.monotonic()
        with pytest.raises(UsageError, match="can't be reached"):
            network.require_reachable("x", [url], seconds=0.3)
    assert time.monotonic() - started < 3


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address under which its files are served."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def end_headers(self):
            if self.path.startswith("/short"):
                self.send_header("Content-Length", "1000000")
            super().end_headers()

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_appears_when_it_is_complete(served, tmp_path):
    folder, address = served
    data = os.urandom(600_000)
    (folder / "file.bin").write_bytes(data)
    reports = []
    arguments = ("x", f"{address}/file.bin", tmp_path / "to", hashlib.sha256(data).hexdigest())
    path = network.download(*arguments, reports.append)
    assert path.read_bytes() == data
    assert reports[-1] == Progress("Downloading file.bin", 600_000, 600_000, "bytes")
    (folder / "file.bin").unlink()
    assert network.download(*arguments, reports.append) == path  # not asked for again


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("file.bin", "its sha256 is .* instead of 0000"),
        ("missing.bin", "missing.bin answers 404"),
    ],
)
def test_a_bad_download_leaves_nothing(name, match, served, tmp_path):
    folder, address = served
    (folder / "file.bin").write_bytes(b"other data")
    with pytest.raises(UsageError, match=match):
        network.download("x", f"{address}/{name}", tmp_path / "to", "0000", print)
    assert files_in(tmp_path / "to") == []


def test_mnist_from_the_network(served, miniature, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    small = miniature("mnist")
    folder, address = served
    infos = tfds.builder_cls("mnist").url_infos
    for path in small.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(
        tfds.builder_cls("mnist"),
        "url_infos",
        {f"{address}/{info.filename}": info for info in infos.values()},
    )
    prepare("mnist", tmp_path / "data", checksums=small.checksums)
    assert prepared_examples("mnist", "test", tmp_path / "data") == as_sorted_examples(
        small.images["test"], small.labels["test"]
    )


# any other dataset


def run_with_builder(body, tmp_path, image):
    """Runs `body` in a process that has a tfds builder of its own, and no TensorFlow."""
    code = f"""
        import sys
        from importlib.machinery import PathFinder

        class WithoutTensorFlow:
            def find_spec(name, *arguments):
                return None if name == "tensorflow" else PathFinder.find_spec(name, *arguments)

        sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorFlow
        import cv2, numpy as np
        import tensorflow_datasets as tfds
        from adabatch_jax.data.preparation import prepare
        from adabatch_jax.data.tfds_sources import tfds_source
        from adabatch_jax.data.datasets import dataset_spec
        from adabatch_jax.errors import AdabatchError

        class Pictures(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            def _info(self):
                features = {{"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=3)}}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
            def _split_generators(self, dl_manager):
                return {{"train": self._generate_examples(6), "validation": self._generate_examples(3)}}
            def _generate_examples(self, n):
                for i in range(n):
                    pixels = np.full((20 + i, 30, 3), (10 * i, 100, 200), np.uint8)
                    png = cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()
                    yield i, {{"image": {image}, "label": i % 3}}

        class NoLabel(Pictures):
            def _info(self):
                features = {{"image": tfds.features.Image(), "depth": tfds.features.Scalar(np.int32)}}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        folder = sys.argv[1]
    """
    code = textwrap.dedent(code) + textwrap.dedent(body)
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return done


def test_another_dataset_goes_through_tfds(tmp_path):
    done = run_with_builder(
        """
        path = prepare("pictures", folder)
        assert path == prepare("pictures", folder)
        spec = dataset_spec("pictures", folder)
        print(spec.num_classes, spec.image_shape, spec.test_split, spec.num_examples, spec.mean)
        source = tfds_source("pictures", "train", folder, image_size=10)
        batch = source.read(np.arange(6))
        print(source.image_shape, batch["image"].shape, sorted(batch["label"].tolist()))
        print(sorted(batch["image"][:, 5, 5].tolist()))
        for call in (lambda: tfds_source("pictures", "train", folder),
                     lambda: prepare("no_label", folder)):
            try:
                call()
            except AdabatchError as error:
                print(error)
        """,
        tmp_path,
        image="png",
    )
    spec, shape, pixels, size_error, label_error = done.stdout.splitlines()
    assert spec == "3 None validation 6 (0.485, 0.456, 0.406)"
    assert shape == "(10, 10, 3) (6, 10, 10, 3) [0, 0, 1, 1, 2, 2]"
    assert json.loads(pixels) == [[10 * i, 100, 200] for i in range(6)]
    assert "the images of 'pictures' differ in size; give `image_size`" in size_error
    assert "dataset 'no_label' has no class label; its features are depth, image." in label_error
    assert done.stderr == ""


def test_without_tensorflow_the_extra_is_named(tmp_path):
    done = run_with_builder(
        """
        try:
            prepare("pictures", folder)
        except AdabatchError as error:
            print(type(error).__name__, error)
        """,
        tmp_path,
        image="pixels",
    )
    assert done.stdout.startswith("UsageError preparing 'pictures' needs TensorFlow")
    assert 'pip install "adabatch_jax[prepare]"' in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert files_in(tmp_path / "data") == []


def test_a_failure_of_tfds_is_one_sentence(tmp_path):
    done = run_with_builder(
        """
        try:
            prepare("pictures", folder)
        except AdabatchError as error:
            print(type(error).__name__, error)
        """,
        tmp_path,
        image="1 / 0",
    )
    assert done.stdout.startswith("StorageError tfds could not prepare 'pictures': ")
    assert "division by zero" in done.stdout
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_imagenet_needs_a_folder(tmp_path):
    with pytest.raises(UsageError, match="'imagenet2012' have to be fetched by hand .* --from"):
        prepare("imagenet2012", tmp_path)


def test_progress_may_print(tmp_path, capsys):
    prepare("digits", tmp_path, progress=lambda progress: print(progress.stage))
    with contextlib.suppress(ValueError):
        assert set(capsys.readouterr().out.split("\n")) == {"Writing train", "Writing test", ""}
