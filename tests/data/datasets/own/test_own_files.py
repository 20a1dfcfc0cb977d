"""Arrays in an .npz, a CSV of paths, Parquet, what `datasets` saved; each against numpy or Pillow."""

import csv
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.data.datasets.preparation.own_images import described
from adabatch_jax.runs.configured_data import num_training_examples, open_data
from adabatch_jax.system.errors import StorageError, UsageError
from tests.data.datasets.own.conftest import as_pillow_sees, encoded, picture

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (40, 6, 5, 3), np.uint8), np.arange(40) % 4
XT, YT = RNG.integers(0, 256, (8, 6, 5, 3), np.uint8), np.arange(8) % 4
SPLIT = {"x_train": X, "y_train": Y, "x_test": XT, "y_test": YT}


def opened(dataset, **data):
    config = TrainConfig(dataset=dataset, data=DataSettings(**data))
    found = open_data(config).in_memory().with_statistics(config.data)
    assert num_training_examples(config) == len(found.train)
    return found


def everything(source):
    return source.read(np.arange(len(source)))


@pytest.fixture
def npz(tmp_path, monkeypatch):
    """`npz(image=x, label=y)` writes `data.npz` and opens it."""
    monkeypatch.chdir(tmp_path)

    def write(settings=None, **arrays):
        np.savez("data.npz", **arrays)
        return opened("data.npz", **(settings or {}))

    return write


@pytest.mark.parametrize("convert", [np.uint8, np.int64])
def test_arrays_of_both_splits(npz, convert):
    data = npz(**{**SPLIT, "x_train": X.astype(convert), "y_train": Y[:, None]})
    train, test = everything(data.train), everything(data.evals["test"])
    np.testing.assert_array_equal(train["image"], X)
    np.testing.assert_array_equal(train["label"], Y)
    np.testing.assert_array_equal(test["image"], XT)
    assert (train["image"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    np.testing.assert_allclose(data.spec.mean, (X / 255).mean((0, 1, 2)), atol=5.1e-5)
    assert data.spec.class_names == ("0", "1", "2", "3")


def test_arrays_without_splits_are_shared_out_by_their_contents(npz):
    data = npz(image=X, label=Y)
    is_test = [int.from_bytes(hashlib.sha256(x.tobytes()).digest()[:8]) / 2**64 < 0.2 for x in X]
    np.testing.assert_array_equal(everything(data.evals["test"])["image"], X[is_test])
    order = RNG.permutation(40)
    again = everything(npz(image=X[order], label=Y[order]).evals["test"])["image"]
    assert {x.tobytes() for x in again} == {x.tobytes() for x in X[is_test]}


def test_grey_arrays_and_another_size(npz):
    data = npz({"image_size": 4}, **{**SPLIT, "x_train": X[..., 0], "x_test": XT[..., 0]})
    assert data.spec.image_shape == (4, 4, 1)


REFUSED = {
    "names": ({"x": X, "y": Y}, "data.npz has x, y; it needs x_train, .* or image and label"),
    "counts": ({"image": X, "label": Y[:-1]}, "image has 40 examples and label 39"),
    "texts": ({"image": X, "label": np.array(["cat"] * 40)}, "label holds labels of type <U3; num"),
    "floats": ({"image": X, "label": Y + 0.5}, "label holds labels of type float64; give .*int"),
    "negative": ({"image": X, "label": Y - 1}, "label holds the label -1; labels begin with 0"),
    "a gap": ({"image": X, "label": Y * 2}, "no training image is of class '1' .*without a gap"),
    "one hot": ({"image": X, "label": np.eye(4)[Y]}, r"label has the shape \(40, 4\).*argmax"),
    "one class": ({"image": X, "label": Y * 0}, "data.npz has only one class, '0'"),
    "rank": ({"image": X.reshape(40, -1), "label": Y}, r"image has the shape \(40, 90\)"),
    "order": ({"image": X.transpose(0, 3, 1, 2), "label": Y}, r"transpose\(0, 2, 3, 1\)"),
    "type": ({"image": X / 255, "label": Y}, r"image is float64; .*\(255 \* image\)"),
    "nan": ({"image": np.where(X == X[7, 0, 0, 0], np.nan, X), "label": Y}, "image holds NaN"),
    "range": ({"image": X.astype(int) * 2, "label": Y}, "pixels from 0 to 510"),
    "objects": ({"image": X, "label": np.array([{}] * 40)}, "label holds Python objects, .*unpick"),
    "none": ({"image": X[:0], "label": Y[:0]}, "image has no examples"),
    "strangers": ({**SPLIT, "y_test": YT + 4}, "y_test holds the label 7, which y_train lacks"),
    "shapes": ({**SPLIT, "x_test": XT[:, :4]}, "x_train and x_test must have one shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_wrong_with_arrays(npz, case):
    arrays, text = REFUSED[case]
    with pytest.raises(UsageError, match=text):
        npz(**arrays)


def test_files_that_aren_t_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data.npz", "data.csv", "data.parquet", "data.zip"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00something else")
    np.save(tmp_path / "single.npy", X)
    (tmp_path / "single.npy").rename("single.npz")
    for name, kind, text in (
        ("data.npz", UsageError, "data.npz is no .npz file"),
        ("single.npz", UsageError, "single.npz holds a single array"),
        ("data.csv", UsageError, "data.csv is no CSV in UTF-8"),
        ("data.parquet", StorageError, "cannot read data.parquet as Parquet"),
        ("./data.zip", UsageError, "neither a folder of images nor a file of the kinds .npz"),
        ("none.npz", UsageError, "there is no file or folder 'none.npz'"),
    ):
        with pytest.raises(kind, match=text):
            opened(name)


@pytest.fixture
def csv_file(photos):
    """`csv_file(header, lines)` writes `list.csv` beside `photos`."""

    def write(*lines):
        with open(photos.parent / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows(lines)
        return opened("list.csv", test_split="30%")

    return write


LINES = [(f"photos/{name}/{n}.png", name) for name in ("cats", "dogs") for n in range(10)]


@pytest.mark.parametrize("header", [("path", "label"), ("File", " Class "), ("filename", "target")])
def test_a_csv_of_paths_and_labels(csv_file, photos, header):
    data = csv_file(header, *LINES)
    assert data.spec.class_names == ("cats", "dogs")
    arrays = [everything(source) for source in (data.train, data.evals["test"])]
    found = {
        (image.tobytes(), int(label))
        for part in arrays
        for image, label in zip(part["image"], part["label"], strict=True)
    }
    assert found == {
        (as_pillow_sees((photos.parent / path).read_bytes()).tobytes(), int(name == "dogs"))
        for path, name in LINES
    }


def test_a_csv_of_numbers_and_splits(csv_file):
    lines = [(path, int(name == "dogs"), "train") for path, name in LINES]
    lines[3] = (*lines[3][:2], "val")
    with open("list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *lines])
    data = opened("list.csv")
    assert (len(data.train), len(data.evals["test"])) == (19, 1)
    assert data.spec.class_names == ("0", "1")


@pytest.mark.parametrize(
    "lines, text",
    [
        ([("photo", "label"), *LINES], "no column 'path'; its first line .* is photo,label"),
        (LINES, "no column 'path'"),
        ([("path", "image", "label"), *LINES], "several columns for 'path'"),
        ([("path", "label")], "has no lines"),
        (
            [("path", "label"), ("photos/cats/77.png", "a"), *LINES],
            r"names 1 files .*77.png \(line",
        ),
        ([("path", "label"), ("photos/cats/0.png", ""), *LINES], "'?label'? is empty in row 1"),
        ([("path", "label"), ("a,b", "c", "d"), *LINES], "line 2 has 3 fields and the first 2"),
        ([("path", "label"), ("photos/cats/0.png", -1)], "the label -1; labels begin with 0"),
    ],
)
def test_what_can_be_wrong_with_a_csv(csv_file, lines, text):
    with pytest.raises(UsageError, match=text):
        csv_file(*lines)


def images_as_bytes(number):
    return [encoded(picture(n)) for n in range(number)]


@pytest.fixture
def parquet(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.chdir(tmp_path)

    def write(columns, name="data.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table(columns), tmp_path / name, row_group_size=7)

    return write


@pytest.mark.parametrize("is_struct", [False, True])
@pytest.mark.parametrize("labels", [[0, 1, 2], ["a", "b", "c"]])
def test_a_parquet_file(parquet, is_struct, labels):
    content = images_as_bytes(30)
    column = [{"bytes": c, "path": "x.png"} for c in content] if is_struct else content
    parquet({"image": column, "label": labels * 10, "other": [1.5] * 30})
    data = opened("data.parquet", test_split="30%")
    assert data.spec.class_names == tuple(map(str, labels))
    parts = [everything(source) for source in (data.train, data.evals["test"])]
    found = {
        image.tobytes(): int(label)
        for part in parts
        for image, label in zip(part["image"], part["label"], strict=True)
    }
    assert found == {as_pillow_sees(c).tobytes(): n % 3 for n, c in enumerate(content)}


def test_a_folder_of_parquet_files(parquet):
    content = images_as_bytes(30)
    for number in range(2):
        part = content[10 * number : 10 * number + 10]
        parquet({"img": part, "label": [0, 1] * 5}, f"hub/train-{number:05d}-of-00002.parquet")
    parquet({"img": content[20:], "label": [0, 1] * 5}, "hub/test-00000-of-00001.parquet")
    data = opened("./hub")
    assert (len(data.train), len(data.evals["test"])) == (20, 10)
    images = everything(data.train)["image"]
    np.testing.assert_array_equal(images, [as_pillow_sees(c) for c in content[:20]])


def test_what_has_no_split_s_name_is_prepared_to_train_on(parquet):
    content = images_as_bytes(20)
    parquet({"img": content[:10], "label": [0, 1] * 5}, "hub/data.parquet")
    parquet({"img": content[10:], "label": [0, 1] * 5}, "hub/test-00000-of-00001.parquet")
    _, splits = described("./hub", Path("hub"), "mine", None)
    written = {name: [record["image"] for record in s.records()] for name, s in splits.items()}
    assert written == {"train": content[:10], "test": content[10:]}


@pytest.mark.parametrize(
    "columns, text",
    [
        ({"pixels": [b""], "label": [0]}, "no column 'image'; it has pixels, label"),
        ({"image": [b""], "name": [0]}, "no column 'label'"),
        ({"image": [1], "label": [0]}, "the column of images is int64; it must hold the bytes"),
        ({"image": [b"", b""], "label": [0, None]}, "label.* is empty in row 2"),
        ({"image": [b"", b""], "label": [0.5, 1]}, "labels of type float64"),
        ({"image": [bytes([n]) for n in range(18)], "label": [0, 1] * 9}, "row .* of .*neither JP"),
    ],
)
def test_what_can_be_wrong_with_a_table(parquet, columns, text):
    parquet(columns)
    with pytest.raises(UsageError, match=text):
        opened("data.parquet", test_split="50%")


def test_a_package_that_is_missing_is_one_sentence(parquet, monkeypatch):
    import sys

    parquet({"image": [b""], "label": [0]})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match="the package pyarrow, which isn't .*pip install pyarrow"):
        opened("data.parquet")


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="needs the package datasets"
)
def test_what_datasets_saved(tmp_path, monkeypatch):
    """In the layout of `save_to_disk`, written with pyarrow alone."""
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    content = images_as_bytes(30)
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    }

    def save(folder, rows):
        (tmp_path / folder).mkdir(parents=True)
        images = [{"bytes": content[row], "path": None} for row in rows]
        table = pyarrow.table(
            {
                "image": pyarrow.array(
                    images, pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
                ),
                "label": pyarrow.array([row % 2 for row in rows], pyarrow.int64()),
            }
        )
        with pyarrow.ipc.new_stream(tmp_path / folder / "data.arrow", table.schema) as writer:
            writer.write_table(table)
        state = {
            "_data_files": [{"filename": "data.arrow"}], "_fingerprint": "0123456789abcdef",
            "_format_columns": None, "_format_kwargs": {}, "_format_type": None,
            "_output_all_columns": False, "_split": None,
        }  # fmt: skip
        (tmp_path / folder / "state.json").write_text(json.dumps(state))
        (tmp_path / folder / "dataset_info.json").write_text(json.dumps({"features": features}))

    save("whole", range(30))
    save("split/train", range(20))
    save("split/validation", range(20, 30))
    (tmp_path / "split" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    data = opened("./split")
    assert data.spec.class_names == ("no", "yes")
    wanted = [as_pillow_sees(c) for c in content]
    np.testing.assert_array_equal(everything(data.train)["image"], wanted[:20])
    np.testing.assert_array_equal(everything(data.evals["test"])["image"], wanted[20:])
    shared = opened("whole", test_split="30%")
    assert len(shared.train) + len(shared.evals["test"]) == 30
