"""Own data through the commands: trained, planned, gone on with, prepared, refused."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from adabatch_jax import doctor, plan, prepare, train
from adabatch_jax.config import TrainConfig
from adabatch_jax.data.sources import in_memory
from adabatch_jax.data.tfds_images import tfds_source
from adabatch_jax.runs.configured_data import open_data
from tests.run_folders import content

SHORT = "--epochs 2 --batch-schedule 8 --microbatch-size none"

FUNCTIONS = """
import numpy as np
import adabatch_jax as ab

rng = np.random.default_rng(0)
X, Y = rng.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 3

def pair():
    return ab.array_source({"image": X, "label": Y}), {"image": X[:9], "label": Y[:9]}

def by_name():
    train, test = pair()
    return {"train": train, "val": test, "other": test}

class Stream:
    num_classes, image_shape, class_names = 3, (8, 8, 1), ("a", "b", "c")
    mean, std = (0.5,), (0.25,)
    def __len__(self): return 40
    def read(self, indices): return {"image": X[indices], "label": Y[indices]}

def stream(): return Stream(), Stream()
def nothing(): return None
def numbers(): return 1, 2
def fails(): raise KeyError("gone")
def floats(): return {"train": {"image": X / 255, "label": Y}, "test": {"image": X, "label": Y}}
def others(): return {"x": X}, {"x": X}
def unlike(images, labels): return {"image": X, "label": Y}, {"image": images, "label": labels}
def without_label(): return {"image": X, "label": Y}, {"image": X}
def lower(): return unlike(X[:, :4], Y)
def float_test(): return unlike(X / 255, Y)
def more_classes(): return unlike(X, Y + 1)
def named(): return unlike(X, np.array(["a", "b", "c"])[Y])
def below_0(): return {"image": X, "label": Y - 1}, {"image": X, "label": Y}
"""


@pytest.fixture
def own(tmp_path, monkeypatch, command):
    """`photos` with 3 classes of 10 images each, and `mydata.py`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADABATCH_DATA_DIR", raising=False)
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs", "eels"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(10):
            image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(tmp_path / "photos" / name / f"{n}.png")
    (tmp_path / "mydata.py").write_text(FUNCTIONS)
    return tmp_path


def test_a_folder_is_trained_on_and_gone_on_with(own, command):
    planned = command(plan.main, f"--dataset photos {SHORT} --json --no-memory")
    assert json.loads(planned.out)["num_examples"] == 21
    first = command(train.main, f"--dataset photos {SHORT} --workdir run")
    assert first.code == 0 and "note: photos has no test split: 9 of its images" in first.out
    kept = json.loads((own / "run" / "dataset.json").read_text())
    assert kept["class_names"] == ["cats", "dogs", "eels"] and len(kept["mean"]) == 3
    assert kept["num_examples"] == 21 and kept["image_shape"] == [8, 8, 3]
    again = command(train.main, f"--dataset photos {SHORT} --workdir run")
    assert "finished already" in again.out
    looked_at = content(own / "cache" / "adabatch_jax" / "indexes")
    assert command(doctor.main, "run").code == 0
    image = sorted((own / "photos" / "cats").iterdir())[0]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    changed = command(train.main, f"--dataset photos {SHORT} --workdir run")
    assert changed.code == 4 and "--allow-change dataset" in changed.err
    assert command(doctor.main, "run").code == 4
    assert content(own / "cache" / "adabatch_jax" / "indexes") == looked_at  # nor by doctor


def test_moved_files_are_the_same_and_others_are_not(own, command):
    arguments = f"{SHORT} --lr 0.05 --workdir run --dataset"
    assert command(train.main, f"{arguments} ./photos").code == 0
    os.rename(own / "photos", own / "elsewhere")
    gone = command(doctor.main, "run")
    assert gone.code == 2 and "there is no file or folder './photos'" in gone.out
    longer = arguments.replace("--epochs 2", "--epochs 3")
    outcome = command(train.main, f"{longer} ./elsewhere")
    assert outcome.code == 0, outcome.err
    assert "note: dataset is ./elsewhere from update 6 on, and was ./photos" in outcome.out
    kept = json.loads((own / "run" / "config.json").read_text())
    assert kept["dataset"] == "./elsewhere"
    np.savez(
        own / "other.npz",
        image=np.random.default_rng(2).integers(0, 256, (40, 8, 8, 3), np.uint8),
        label=np.arange(40) % 3,
    )
    assert command(train.main, f"{longer} other.npz").code == 4


@pytest.mark.slow
def test_streamed_from_files_a_run_is_what_it_is_from_memory(own, command, monkeypatch):
    command(train.main, f"--dataset ./photos {SHORT} --workdir memory")
    monkeypatch.setattr("adabatch_jax.runs.configured_data._MEMORY_LIMIT_BYTES", 0)
    assert command(train.main, f"--dataset ./photos {SHORT} --workdir files").code == 0
    digests = [
        json.loads((own / folder / "summary.json").read_text())["weights_digest"]
        for folder in ("memory", "files")
    ]
    assert digests[0] == digests[1]
    assert (
        "finished already"
        in command(train.main, f"--dataset ./photos {SHORT} --workdir memory").out
    )


@pytest.mark.slow
def test_what_is_prepared_from_a_folder_is_the_folder(own, command, refused):
    (own / "photos" / "cats" / "0.png").unlink()
    exif = Image.Exif()
    exif[274] = 6
    turned = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(turned).save(own / "photos" / "cats" / "0.jpg", exif=exif)
    Image.fromarray(turned).save(own / "photos" / "cats" / "00.webp", lossless=True)
    done = command(prepare.main, "./photos --name mine")
    assert done.code == 0 and done.out.startswith("mine is ready in ")
    folder = open_data(TrainConfig(dataset="./photos"))
    for split, source in {"train": folder.train, **folder.evals}.items():
        prepared = in_memory(tfds_source("mine", split)).arrays
        for name, values in in_memory(source).arrays.items():
            np.testing.assert_array_equal(prepared[name], values)
    config = TrainConfig(dataset="mine")
    a, b = (
        open_data(c).with_statistics(c.data).spec for c in (config, TrainConfig(dataset="./photos"))
    )
    assert (a.mean, a.std, a.class_names) == (b.mean, b.std, b.class_names) and len(a.mean) == 3
    os.rename(own / "photos", own / "mine")  # the registered name wins
    assert command(train.main, f"--dataset mine {SHORT}").code == 0
    refused(prepare.main, "./mine", "say what its images are to be called with --name")
    refused(prepare.main, "./mine --name mnist", "'mnist' is another dataset's name")
    refused(prepare.main, "./mine --name Mine!", "must be of small letters")
    refused(prepare.main, "mnist --image-size 8", "--image-size is for own images")


def test_a_name_stands_for_the_images_it_was_prepared_from(own, command, refused):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(own / "arrays.npz", image=pixels, label=np.arange(60) % 3)
    for dataset in ("./photos", "./arrays.npz"):
        name = f"of_{dataset[2:8]}"
        assert command(prepare.main, f"{dataset} --name {name}").code == 0
        again = command(prepare.main, f"{dataset} --name {name}")
        assert again.code == 0 and "is ready" in again.out
    # Another file or folder, another size, and the same folder with one image fewer.
    others = "--name: 'of_photos' is there already, and not of the same images as"
    refused(prepare.main, "./arrays.npz --name of_photos", f"{others} ./arrays.npz")
    refused(prepare.main, "./photos --name of_photos --image-size 5", f"{others} ./photos")
    refused(prepare.main, "./photos --name of_arrays", "or add --overwrite to replace it.")
    sorted((own / "photos" / "cats").iterdir())[0].unlink()
    refused(prepare.main, "./photos --name of_photos", f"{others} ./photos")
    assert command(prepare.main, "./photos --name of_photos --overwrite").code == 0
    assert command(prepare.main, "./photos --name of_photos").code == 0


def test_few_examples_refuse_a_schedule_that_nobody_gave_by_its_name(own, refused):
    default = "batch_schedule: with the default, '32 x2 every 20% max 512', batch size 32"
    refused(train.main, "--dataset ./photos", f"{default} … cap it with `max 21`")
    refused(plan.main, "--dataset ./photos", default)
    refused(plan.main, "--dataset ./photos --batch-schedule 64", "error: batch size 64 of phase 1")


def test_resized_when_prepared(own, command):
    assert command(prepare.main, "./photos --name small --image-size 5").code == 0
    assert tfds_source("small").image_shape == (5, 5, 3)


@pytest.mark.parametrize("name", ["pair", "by_name", "stream"])
def test_functions(own, command, name):
    outcome = command(train.main, f"--dataset mydata:{name} {SHORT} --workdir run")
    assert outcome.code == 0, outcome.err
    kept = json.loads((own / "run" / "dataset.json").read_text())
    assert (kept["num_classes"], kept["num_examples"]) == (3, 40)
    if name == "stream":
        assert (kept["mean"], kept["class_names"]) == ([0.5], ["a", "b", "c"])
    assert command(doctor.main, "run").code == 0


REFUSED = {
    "mydata:nothing": "mydata:nothing must return (train, test)",
    "mydata:numbers": "as 'train' a int, which is no source",
    "mydata:fails": "mydata:fails fails with KeyError",
    "mydata:floats": "cnn_digits takes uint8 images and labels",
    "mydata:others": "cnn_digits takes uint8 images and labels",
    "mydata:without_label": "mydata:without_label returns as 'test' examples without 'label'",
    "mydata:lower": "the 'test' images … are uint8, 4x8x1, and those to train on uint8, 8x8x1",
    "mydata:float_test": "the 'test' images … are float64, 8x8x1, and those to train on uint8",
    "mydata:more_classes": "'test' the label 3, of example 2, and there are 3 classes",
    "mydata:named": "as 'test' labels of type <U1",
    "mydata:below_0": "'train' the label -1, of example 0, and there are 2 classes",
    "mydata:none": "'mydata' has no 'none'",
    "nodata:load": "there is no module 'nodata'",
    "mydata:by_name --data.test-split 20%": "mydata:by_name returns its splits itself",
    "mydata:pair --data.image-size 8": "which bring their images to a size themselves",
    "mydata:by_name --data.test-split tset": "has no split 'tset'",
    "./foto": "there is no file or folder './foto'",
    "photos --data.test-split 120%": "data.test_split: '120%' is no share",
    "photos --data.mean 1 2": "data.mean: 2 numbers were given, and the images have 3",
    "photos --data.std 0": "data.std: '0' must be above 0",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refusals(own, refused, arguments):
    refused(train.main, f"--dataset {arguments} {SHORT} --workdir run", REFUSED[arguments])
    assert not (own / "run" / "config.json").exists()


def test_the_registered_dataset_tells_its_facts_too(own, command):
    assert command(train.main, f"{SHORT} --workdir run --batch-schedule 512").code == 0
    kept = json.loads((own / "run" / "dataset.json").read_text())
    assert kept == {
        "name": "digits", "num_classes": 10, "image_shape": [8, 8, 1], "num_examples": 1442,
        "mean": [0.3052], "std": [0.376], "class_names": list("0123456789"),
        "image_type": "uint8",
    }  # fmt: skip


def test_damaged_images_are_one_sentence(own, refused):
    (own / "photos" / "cats" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (own / "photos" / "dogs" / "1.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    refused(train.main, f"--dataset photos {SHORT}", "2 images of photos … cats/0.png … dogs/1.jpg")
