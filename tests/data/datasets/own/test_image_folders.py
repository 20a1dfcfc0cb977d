"""Images in folders by class: which are found, how they are read, how they are shared out."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.data.datasets.preparation.own_images import described
from adabatch_jax.data.own_images import OwnImages
from adabatch_jax.data.sources import ArraySource
from adabatch_jax.runs.configured_data import describe_data, num_training_examples, open_data
from adabatch_jax.system.errors import ExampleError, UsageError
from tests.data.datasets.own.conftest import as_pillow_sees, encoded, picture


def opened(dataset="./photos", **data):
    config = TrainConfig(dataset=dataset, data=DataSettings(**data))
    return open_data(config).in_memory().with_statistics(config.data)


def everything(source):
    return source.read(np.arange(len(source)))


def in_test(path, share=0.2):
    """The rule, from its words: the first eight bytes of the path's sha256, as a fraction."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) / 2**64 < share


def test_a_share_is_decided_by_each_path_alone(photos):
    data = opened()
    paths = sorted(str(path.relative_to(photos)) for path in photos.glob("*/*.png"))
    for source, side in ((data.train, False), (data.evals["test"], True)):
        wanted = [path for path in paths if in_test(path) is side]
        arrays = everything(source)
        assert [["cats", "dogs", "eels"][label] for label in arrays["label"]] == [
            path.partition("/")[0] for path in wanted
        ]
        for path, image in zip(wanted, arrays["image"], strict=True):
            np.testing.assert_array_equal(image, as_pillow_sees((photos / path).read_bytes()))
    assert data.notes and "no test split" in data.notes[0]
    assert data.spec.class_names == ("cats", "dogs", "eels")
    assert (
        data.spec.num_examples
        == len(data.train)
        == num_training_examples(TrainConfig(dataset="./photos"))
    )


def test_other_files_move_none(photos):
    before = {row.tobytes() for row in everything(opened().evals["test"])["image"]}
    for n in range(30):
        (photos / "dogs" / f"new{n}.png").write_bytes(encoded(picture(1000 + n)))
    after = {row.tobytes() for row in everything(opened().evals["test"])["image"]}
    assert before < after


def test_test_and_holdout_are_apart(photos):
    data = opened(test_split="20%", holdout_split="30%")
    parts = [data.train, *data.evals.values()]
    rows = [row.tobytes() for part in parts for row in everything(part)["image"]]
    assert list(data.evals) == ["test", "holdout"] and len(rows) == len(set(rows)) == 30
    alone = everything(opened(test_split="20%").evals["test"])["image"]
    np.testing.assert_array_equal(alone, everything(data.evals["test"])["image"])


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_splits_that_are_there(photos, name):
    shutil.copytree(photos, photos.parent / "split" / "train")
    shutil.copytree(photos / "dogs", photos.parent / "split" / name / "dogs")
    data = opened("split", **({} if name != "val" else {"test_split": "val"}))
    assert (len(data.train), len(data.evals["test"]), data.notes) == (30, 10, ())
    assert set(everything(data.evals["test"])["label"]) == {1}
    # The split's own name decides nothing.
    shared, whole = opened("split", test_split="20%"), opened()
    assert shared.evals["test"].digest() == whole.evals["test"].digest()


def test_what_is_prepared_is_what_would_be_trained_on(photos):
    for name, classes in {"train": photos, "training": photos, "val": photos}.items():
        shutil.copytree(classes, photos.parent / "split" / name)
    _, splits = described("split", Path("split"), "mine", None)
    places = {name: split.examples.places[0] for name, split in splits.items()}
    assert places == {"train": "split/train/cats/0.png", "validation": "split/val/cats/0.png"}


def test_a_split_s_contents_are_its_own(photos):
    """The order and the labels count for a digest, names and times don't."""
    before = opened()
    os.rename(photos, photos.parent / "moved")
    for path in (photos.parent / "moved").rglob("*.png"):
        os.utime(path, (1, 1))
    assert opened("./moved").train.read_from.digest() == before.train.read_from.digest()
    path = next(p for p in sorted((photos.parent / "moved" / "cats").iterdir()))
    path.write_bytes(encoded(picture(77)))
    now = opened("./moved")
    assert {now.train.digest(), now.evals["test"].digest()} != {
        before.train.digest(), before.evals["test"].digest()
    }  # fmt: skip


WRITTEN = {
    "jpeg": lambda: encoded(picture(1), "JPEG", quality=95),
    "png": lambda: encoded(picture(2)),
    "webp": lambda: encoded(picture(3), "WEBP", lossless=True),
    "bmp": lambda: encoded(picture(4), "BMP"),
    "grey png": lambda: encoded(picture(5, channels=1)),
    "grey jpeg": lambda: encoded(picture(6, channels=1), "JPEG"),
    "palette": lambda: encoded(picture(7).quantize(8)),
    "one bit": lambda: encoded(picture(8).convert("1")),
    "transparent": lambda: encoded(picture(9, channels=4)),
    "grey transparent": lambda: encoded(picture(10).convert("LA")),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_kinds_of_files(photos, kind):
    content = WRITTEN[kind]()
    (photos / "cats" / "0.JPG").write_bytes(content)  # its contents say what it is
    data = opened(test_split="30%")
    images = np.concatenate([everything(s)["image"] for s in (data.train, data.evals["test"])])
    # Decoders of JPEG round differently.
    off = 2 if "jpeg" in kind else 0
    wanted = as_pillow_sees(content).astype(int)
    assert min(abs(image - wanted).max() for image in images) <= off


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_are_turned_as_they_say(photos, kind, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    size = (5, 6) if orientation in (6, 8) else (6, 5)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    content = encoded(picture(1, size), kind, exif=exif, **options)
    (photos / "cats" / "0.png").write_bytes(content)
    data = opened(test_split="30%")
    images = np.concatenate([everything(s)["image"] for s in (data.train, data.evals["test"])])
    wanted = as_pillow_sees(content).astype(int)
    assert wanted.shape == (6, 5, 3)
    assert min(abs(image - wanted).max() for image in images) <= (4 if kind == "JPEG" else 0)


def test_of_sixteen_bits_the_upper_eight_are_taken(photos):
    values = np.random.default_rng(0).integers(0, 2**16, (6, 5)).astype(np.uint16)
    (photos / "cats" / "0.png").write_bytes(encoded(Image.fromarray(values)))
    data = opened(test_split="30%")
    images = np.concatenate([everything(s)["image"] for s in (data.train, data.evals["test"])])
    assert any((image == (values >> 8)[..., None]).all() for image in images)


def test_grey_stays_one_channel_where_all_are(photos):
    for number, path in enumerate(sorted(photos.glob("*/*.png"))):
        path.write_bytes(encoded(picture(number, channels=1)))
    data = opened()
    assert data.spec.image_shape == (6, 5, 1) and len(data.spec.mean) == 1
    (photos / "dogs" / "0.png").write_bytes(encoded(picture(0)))
    assert opened().spec.image_shape == (6, 5, 3)


def test_mean_and_deviation_are_those_of_the_training_images(photos):
    data = opened()
    pixels = everything(data.train)["image"].astype(np.float64) / 255
    np.testing.assert_allclose(data.spec.mean, pixels.mean((0, 1, 2)), atol=5.1e-5)
    np.testing.assert_allclose(data.spec.std, pixels.std((0, 1, 2)), atol=5.1e-5)
    given = opened(mean="0.5", std="0.1 0.2 0.3").spec
    assert (given.mean, given.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    with pytest.raises(UsageError, match="^data.mean: 2 numbers .* 3 channels"):
        opened(mean="0.5 0.4")
    plan = describe_data(TrainConfig(dataset="./photos"))
    assert (plan.mean, plan.std, plan.image_shape) == (data.spec.mean, data.spec.std, (6, 5, 3))


def test_sizes_that_differ_need_one(photos):
    (photos / "cats" / "big.png").write_bytes(encoded(picture(0, (12, 40))))
    with pytest.raises(UsageError, match=r"photos differ in size \(heights 6 to 12.*image-size"):
        opened()
    assert opened(image_size=4).spec.image_shape == (4, 4, 3)


def test_damaged_images_are_all_named_before_anything_is_trained(photos):
    damaged = {
        "cats/0.png": (b"", "an empty file"),
        "dogs/1.png": (encoded(picture(1))[:-20], "cut off"),
        "dogs/2.png": (b"<html>", "neither JPEG"),
        "eels/3.png": (encoded(picture(1, (60, 60)), "JPEG")[:-200], "damaged"),
        "eels/4.png": (encoded(picture(1))[:-20] + bytes(20), "damaged"),
    }
    for name, (content, _) in damaged.items():
        (photos / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(UsageError, match="of ./photos can't be read") as raised:
            opened(test_split="30%")
        for name, (_, reason) in damaged.items():
            assert f"./photos/{name} ({reason}" in str(raised.value)
    for name in damaged:
        (photos / name).unlink()
    assert len(opened().train)


def test_what_is_known_is_not_read_again_and_never_believed_when_trained_on(photos, monkeypatch):
    opened()
    path = photos / "cats" / "5.png"
    content, times = path.read_bytes(), path.stat()
    other = bytearray(encoded(picture(0)))
    assert len(other) == len(content) and bytes(other) != content
    path.write_bytes(other)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ExampleError, match="cats/5.png.* isn't what it was"):
        opened()
    os.utime(path)  # then it is looked at anew
    opened()
    monkeypatch.setattr("adabatch_jax.data.datasets.own.image_index.examined", None)
    opened()  # nothing is looked at that is known


def test_streamed_images_are_those_in_memory(photos):
    config = TrainConfig(dataset="./photos")
    streamed, kept = open_data(config).train, opened().train
    assert isinstance(streamed, OwnImages) and isinstance(kept, ArraySource)
    rows = np.array([7, 0, 7, 3])
    for name, values in streamed.read(rows).items():
        np.testing.assert_array_equal(values, kept.read(rows)[name])
    (photos / "cats" / "1.png").unlink()
    (photos / "cats" / "2.png").unlink()
    with pytest.raises(ExampleError, match="photos/cats/.*No such file"):
        everything(streamed)


def refusals():
    def only_one(folder):
        shutil.rmtree(folder / "cats")
        shutil.rmtree(folder / "dogs")

    def empty(folder):
        for path in folder.glob("*/*"):
            path.unlink()

    def outside(folder):
        (folder / "cat.jpg").write_bytes(encoded(picture(0)))

    def stranger(folder):
        shutil.copytree(folder, folder / "train")
        shutil.copytree(folder / "cats", folder / "test" / "cows")

    def gone(folder):
        shutil.rmtree(folder)

    def gif(folder):
        (folder / "cats" / "0.gif").write_bytes(b"GIF89a")

    def lonely(folder):
        for path in folder.glob("cats/*"):
            path.unlink()
        name = next(f"{n}.png" for n in range(100) if in_test(f"cats/{n}.png"))
        (folder / "cats" / name).write_bytes(encoded(picture(0)))

    return {
        only_one: "./photos has only one class, 'eels'",
        empty: "./photos holds no images .* in folders by class",
        outside: "./photos holds the image 'cat.jpg', which is in no class",
        stranger: "./photos/test holds the class 'cows', which ./photos/train lacks",
        gone: "there is no file or folder './photos'",
        gif: "./photos/cats/0.gif is no JPEG, PNG, WebP or BMP",
        lonely: "no training image is of class 'cats'",
    }


@pytest.mark.parametrize("spoil", refusals(), ids=lambda f: f.__name__)
def test_what_can_be_wrong_with_a_folder(photos, spoil):
    spoil(photos)
    with pytest.raises(UsageError, match=refusals_by_name()[spoil.__name__]):
        opened()


def refusals_by_name():
    return {spoil.__name__: text for spoil, text in refusals().items()}


@pytest.mark.parametrize(
    "data, text",
    [
        ({"test_split": "test"}, "test_split: ./photos has no splits, so there is no 'test'"),
        ({"train_split": "train"}, "train_split: ./photos has no splits"),
        ({"test_split": "60%", "holdout_split": "40%"}, "leave nothing to train on"),
        ({"test_split": "0.000001%"}, "nothing is left of its 30 images for 'test'"),
    ],
)
def test_splits_that_can_t_be(photos, data, text):
    with pytest.raises(UsageError, match=text):
        opened(**data)


def test_hidden_files_notes_and_links_in_circles(photos):
    (photos / ".git").mkdir()
    (photos / "cats" / ".hidden.png").write_bytes(b"")
    (photos / "cats" / "notes.txt").write_text("")
    (photos / "readme.md").write_text("")
    (photos / "cats" / "more" / "deep").mkdir(parents=True)
    os.rename(photos / "cats" / "0.png", photos / "cats" / "more" / "deep" / "0.png")
    os.symlink(photos / "cats", photos / "cats" / "more" / "again")
    data = opened()
    assert len(data.train) + len(data.evals["test"]) == 30
