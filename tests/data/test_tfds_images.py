"""Reading prepared datasets: the right examples, without TensorFlow, and damage told plainly."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from adabatch_jax.data.datasets.image_decoding import decode_image, resize_and_crop
from adabatch_jax.data.sources import array_source, in_memory
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.system.errors import ExampleError, StorageError, UsageError


@pytest.fixture
def damaged(digits_dir, tmp_path):
    """A private copy of the digits: the data folder and the file of the training split."""
    shutil.copytree(digits_dir, tmp_path / "data")
    (file,) = (tmp_path / "data").rglob("digits-train*")
    return tmp_path / "data", file


def test_read_follows_the_indices(digits_dir):
    source = tfds_source("digits", "train", digits_dir)
    everything = source.read(np.arange(len(source)))
    indices = np.array([1441, 0, 7, 7, 300], np.int64)
    batch = source.read(indices)
    assert set(batch) == {"image", "label"}
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    assert batch["image"].shape == (5, 8, 8, 1)
    for name in batch:
        np.testing.assert_array_equal(batch[name], everything[name][indices])


def test_read_agrees_with_tfds(fashion_mnist_dir):
    import tensorflow_datasets as tfds

    source = tfds_source("fashion_mnist", "test", fashion_mnist_dir)
    stock = tfds.builder("fashion_mnist", data_dir=fashion_mnist_dir, file_format="array_record")
    indices = np.random.default_rng(0).permutation(10_000)[:500]
    examples = stock.as_data_source("test").__getitems__(indices.tolist())
    batch = source.read(indices)
    np.testing.assert_array_equal(batch["image"], [example["image"] for example in examples])
    np.testing.assert_array_equal(batch["label"], [example["label"] for example in examples])


def test_a_label_that_is_no_class_names_its_example(digits_dir, monkeypatch):
    source = tfds_source("digits", "train", digits_dir)
    monkeypatch.setattr(source, "num_classes", 9)
    with pytest.raises(ExampleError, match="its label 9 is none of 9 classes"):
        source.read(np.arange(100))


def test_colours_are_rgb(miniature, tmp_path):
    from adabatch_jax.data.datasets.preparation import prepare

    small = miniature("cifar10")
    small.images["test"][:] = np.array([250, 100, 5], np.uint8)
    small.write(small.cifar10())
    prepare("cifar10", tmp_path, small.folder, checksums=small.checksums)
    source = tfds_source("cifar10", "test", tmp_path)
    assert (source.num_classes, source.image_shape) == (10, (32, 32, 3))
    assert (source.read(np.arange(20))["image"] == [250, 100, 5]).all()


@pytest.mark.parametrize(
    ("split", "start", "stop"),
    [("train[:90%]", 0, 1298), ("train[90%:]", 1298, 1442), ("train[10:20]", 10, 20)],
)
def test_splits_are_written_as_in_tfds(split, start, stop, digits_dir):
    whole = in_memory(tfds_source("digits", "train", digits_dir)).arrays
    part = in_memory(tfds_source("digits", split, digits_dir)).arrays
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][start:stop])


@pytest.mark.parametrize(
    ("split", "match"),
    [
        ("tset", "has no split 'tset'; did you mean 'test'"),
        ("zzz", "has no split 'zzz'; it has test, train"),
        ("train[:x]", "split 'train.:x.' of dataset 'digits' can't be read .*1442 examples"),
        ("train[5000:6000]", "split 'train.5000:6000.' of dataset 'digits' can't be read"),
        ("train[:0]", "has no examples"),
        ("", "has no split ''"),
    ],
)
def test_wrong_splits(split, match, digits_dir):
    with pytest.raises(UsageError, match=match):
        tfds_source("digits", split, digits_dir)


@pytest.mark.parametrize("indices", [[-1], [1442], [0, 5000]])
def test_indices_out_of_range(indices, digits_dir):
    with pytest.raises(IndexError, match="of 1442 examples"):
        tfds_source("digits", "train", digits_dir).read(np.array(indices))


def test_nothing_is_read_for_no_indices(digits_dir):
    batch = tfds_source("digits", "train", digits_dir).read(np.array([], np.int64))
    assert batch["image"].shape == (0, 8, 8, 1) and batch["label"].shape == (0,)


def test_threads_may_share_a_source(digits_dir):
    source = tfds_source("digits", "train", digits_dir)
    orders = [np.random.default_rng(seed).permutation(1442) for seed in range(8)]
    whole = in_memory(source).arrays["image"]
    with ThreadPoolExecutor(4) as threads:
        for order, batch in zip(orders, threads.map(source.read, orders), strict=True):
            np.testing.assert_array_equal(batch["image"], whole[order])


def test_in_memory_equals_the_source(digits_dir):
    source = tfds_source("digits", "test", digits_dir)
    memory = in_memory(source, block_size=100)
    assert len(memory) == 355
    indices = np.array([354, 99, 100, 0])
    for name, values in source.read(indices).items():
        np.testing.assert_array_equal(memory.read(indices)[name], values)
        assert memory.read(indices)[name].dtype == values.dtype
    numbers = array_source({"x": np.arange(5)})
    assert in_memory(numbers, block_size=2).arrays["x"].tolist() == [0, 1, 2, 3, 4]


def test_digits_are_prepared_on_first_use(tmp_path, capfd):
    assert len(tfds_source("digits", "test", tmp_path)) == 355
    assert capfd.readouterr() == ("", "")


def test_others_have_to_be_prepared(tmp_path):
    folder = tmp_path / "my data"
    with pytest.raises(
        UsageError,
        match=f"'mnist' .*`python -m adabatch_jax.prepare mnist --data-dir '{folder}'`",
    ):
        tfds_source("mnist", data_dir=folder)


def test_image_size_must_be_positive(digits_dir):
    with pytest.raises(UsageError, match="`image_size` .* 0"):
        tfds_source("digits", "train", digits_dir, image_size=0)


def _cut_to(num_bytes):
    return lambda file: os.truncate(file, num_bytes)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (_cut_to(0), "has 0 whole records in 0 bytes instead of 1442"),
        (_cut_to(70_000), "has 0 whole records in 70000 bytes instead of 1442"),
        (lambda file: os.truncate(file, file.stat().st_size - 1), "has 0 .* instead of 1442"),
        (lambda file: file.unlink(), "is missing"),
        (
            lambda file: shutil.copy(str(file).replace("-train", "-test"), file),
            "has 355 whole records in [0-9]+ bytes instead of 1442",
        ),
    ],
)
def test_a_damaged_file_is_noticed_on_opening(damage, match, damaged):
    data_dir, file = damaged
    damage(file)
    again = f"`python -m adabatch_jax.prepare digits --data-dir {data_dir} --overwrite`"
    with pytest.raises(StorageError, match=f"{file} of dataset 'digits' {match}; {again}"):
        tfds_source("digits", "train", data_dir)
    assert len(tfds_source("digits", "test", data_dir)) == 355  # the other file is fine


def test_a_file_that_cannot_be_opened_is_not_damaged(damaged, monkeypatch):
    data_dir, file = damaged

    open_file = Path.open

    def refuse(path, *arguments, **options):
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match=f"^cannot read {file}: Permission denied.$"):
        tfds_source("digits", "train", data_dir)


def test_damage_inside_a_file_is_noticed_on_reading(damaged):
    data_dir, file = damaged
    with open(file, "r+b") as handle:
        handle.seek(file.stat().st_size // 3)
        handle.write(bytes(3000))
    source = tfds_source("digits", "train", data_dir)
    with pytest.raises(ExampleError, match="example [0-9]+ of dataset 'digits' in .*digits-train"):
        in_memory(source)
    assert ExampleError.exit_code == 1
    # Examples elsewhere can still be read.
    assert source.read(np.array([0, 1]))["label"].shape == (2,)


@pytest.mark.parametrize("offset", range(0, 100_000, 9_973))
def test_a_flipped_bit_never_gives_a_wrong_image(offset, damaged, digits_dir):
    data_dir, file = damaged
    with open(file, "r+b") as handle:
        handle.seek(offset)
        byte = handle.read(1)
        handle.seek(offset)
        handle.write(bytes([byte[0] ^ 0x10]))
    whole = in_memory(tfds_source("digits", "train", digits_dir)).arrays
    try:
        arrays = in_memory(tfds_source("digits", "train", data_dir)).arrays
    except (ExampleError, StorageError):
        return
    for name in whole:
        np.testing.assert_array_equal(arrays[name], whole[name])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 3}'])
def test_damaged_metadata(content, damaged):
    data_dir, file = damaged
    (file.parent / "dataset_info.json").write_text(content)
    with pytest.raises((StorageError, UsageError), match="digits"):
        tfds_source("digits", "train", data_dir)


def test_tfrecord_is_refused(damaged):
    data_dir, file = damaged
    info = json.loads((file.parent / "dataset_info.json").read_text())
    (file.parent / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UsageError, match="digits.* tfrecord"):
        tfds_source("digits", "train", data_dir)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_comes_back_exactly(channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    opencvs_order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
    encoded = cv2.imencode(".png", np.ascontiguousarray(image[..., opencvs_order]))[1].tobytes()
    np.testing.assert_array_equal(decode_image(encoded, channels), image)


@pytest.mark.parametrize("encoded", [b"", b"junk", cv2.imencode(".png", np.zeros((3, 3)))[1][:40]])
def test_junk_is_not_an_image(encoded):
    with pytest.raises(ValueError, match="not an image"):
        decode_image(bytes(encoded), 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_orientation_is_ignored(channels):
    image = np.zeros((4, 6, channels), np.uint8)
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    # An Exif segment behind the start marker: one entry, orientation (0x112) = 6, a quarter turn.
    entry = struct.pack(">HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    turned = encoded[:2] + struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif + encoded[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (6, 4, 3)
    assert decode_image(turned, channels).shape == (4, 6, channels)


def test_four_channels_are_not_made_up():
    encoded = cv2.imencode(".png", np.zeros((3, 3, 3), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="8-bit .* 4 channels"):
        decode_image(encoded, 4)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (8, 8), (5, 50), (7, 3), (1, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_images_are_square(height, width, channels):
    image = np.full((height, width, channels), 77, np.uint8)
    resized = resize_and_crop(image, 8)
    assert resized.shape == (8, 8, channels)
    assert (resized == 77).all()


def test_the_crop_is_central():
    columns = np.arange(9, dtype=np.uint8)
    image = np.broadcast_to(columns[None, :, None], (5, 9, 1))
    np.testing.assert_array_equal(resize_and_crop(image, 5)[0, :, 0], [2, 3, 4, 5, 6])


def test_halving_averages_areas():
    image = np.array([[0, 100], [50, 250]], np.uint8)[..., None]
    assert resize_and_crop(image, 1).item() == 100


def test_images_can_be_resized(digits_dir):
    source = tfds_source("digits", "test", digits_dir, image_size=16)
    assert source.image_shape == (16, 16, 1)
    images = source.read(np.arange(3))["image"]
    assert images.shape == (3, 16, 16, 1) and images.max() > 0


def test_large_images_are_shared_out_among_threads_in_order(digits_dir):
    source = tfds_source("digits", "test", digits_dir, image_size=256)
    indices = np.random.default_rng(0).permutation(355)[:30]
    together = source.read(indices)
    for row, index in enumerate(indices):
        alone = source.read(np.array([index]))
        np.testing.assert_array_equal(together["image"][row], alone["image"][0])
        assert together["label"][row] == alone["label"][0]


def test_opening_loads_no_tensorflow_and_prints_nothing(digits_dir):
    code = (
        "import sys, numpy as np; from adabatch_jax.data.tfds_images import tfds_source;"
        "tfds_source('digits', 'train', sys.argv[1]).read(np.arange(3));"
        "assert not {'tensorflow', 'torch', 'sklearn', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(digits_dir)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("package", ["tensorflow_datasets", "importlib_resources"])
def test_a_missing_package_is_named_with_the_command(package, monkeypatch, digits_dir):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"'{package}'.* `pip install \"adabatch_jax.train.\"`"):
        tfds_source("digits", "train", digits_dir)
