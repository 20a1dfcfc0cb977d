"""What is written from original files is the stock dataset; wrong files are named."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from adabatch_jax.data.datasets.preparation import StageProgress, prepare
from adabatch_jax.data.datasets.preparation.original_archives import with_gzip_header
from adabatch_jax.data.datasets.preparation.own_datasets import DEBIAN_FASHION_MNIST
from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.system.errors import StorageError, UsageError


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_folder_with_original_files_becomes_the_stock_dataset(
    name, miniature, tmp_path, as_sorted_examples, prepared_examples
):
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
        assert StageProgress(f"Writing {split}", num_examples, num_examples, "examples") in reports


def test_an_examples_features_are_always_written_in_one_order(monkeypatch, tmp_path):
    """Who prepares a dataset anew has the same files: they may be known by a hash."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    written = []
    get_tf_example = ExampleSerializer.get_tf_example

    def with_more_features(self, example):
        tf_example = get_tf_example(self, example)
        for name in "hgfedcba":
            tf_example.features.feature[f"<{name}>"].int64_list.value.append(1)
        written.append(tf_example.SerializeToString(deterministic=True))
        return tf_example

    monkeypatch.setattr(ExampleSerializer, "get_tf_example", with_more_features)
    path = prepare("digits", tmp_path)
    (file,) = path.glob("digits-test*")
    reader = ArrayRecordReader(str(file))
    records = reader.read_all()
    reader.close()
    assert records and set(records) <= set(written)


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


def test_the_checksums_that_tfds_knows_are_required(miniature, tmp_path, files_in):
    small = miniature("cifar10")
    found = small.checksums["cifar-10-binary.tar.gz"]
    wanted = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    with pytest.raises(StorageError, match=f"tar.gz .*sha256 .*{found}, .*{wanted}"):
        prepare("cifar10", tmp_path / "data", small.folder)
    assert not is_prepared("cifar10", tmp_path / "data")
    assert files_in(tmp_path / "data") == []


def test_a_missing_original_is_named(miniature, tmp_path):
    small = miniature("mnist")
    (small.folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UsageError, match="t10k-labels-idx1-ubyte.gz"):
        prepare("mnist", tmp_path / "data", small.folder, checksums=small.checksums)
    with pytest.raises(UsageError, match="elsewhere"):
        prepare("mnist", tmp_path / "data", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "data",
    [
        b"not gzip",
        gzip.compress(bytes(1000))[:-9],
        gzip.compress(b""),
        gzip.compress(b"\0\0\x0d\x03" + bytes(12)),
        gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 50, 28, 28)),
        gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12),
        gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 3) + b"abc"),
        gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 1, 28, 28) + bytes(784)),
    ],
    ids=lambda value: "",  # the bytes hold the time
)
def test_damaged_idx_files(data, miniature, tmp_path):
    small = miniature("mnist")
    small.write({"train-images-idx3-ubyte.gz": data})
    with pytest.raises(StorageError, match=f"'mnist' .*{tmp_path / 'data'}.*: "):
        prepare("mnist", tmp_path / "data", small.folder, checksums=small.checksums)


@pytest.mark.parametrize(
    ("split", "prefix", "size"), [("train", "train", 60_000), ("test", "t10k", 10_000)]
)
def test_fashion_mnist_equals_the_original_files(
    split, prefix, size, fashion_mnist_dir, prepared_examples
):
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
