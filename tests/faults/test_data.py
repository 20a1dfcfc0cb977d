"""The examples themselves: exchanged, damaged, moved or prepared anew between two starts."""

import os
import shutil
import signal

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from adabatch_jax.data.datasets.preparation import digits, prepare, record_writing
from tests.faults.damage import flip_bit
from tests.faults.harness import Run, assert_same, content, finish, killed_by, start

pytestmark = pytest.mark.faults

KILLED = killed_by(signal.SIGKILL)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the digits as they are."""
    folder = tmp_path_factory.mktemp("data")
    prepare("digits", folder)
    return folder


@pytest.fixture
def data(prepared, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(prepared, tmp_path / "data")


def file_of(data, split="train"):
    (path,) = data.rglob(f"digits-{split}*")
    return path


def write_other(folder, split, change):
    """Prepares the digits with one split changed: `change(images, labels)`."""
    splits = digits.splits()
    images, labels = change(splits[split].images.copy(), splits[split].labels["label"].copy())
    splits[split] = record_writing.Split(images, {"label": labels})
    record_writing.write(digits.builder_class(), splits, folder, lambda stage: None)
    return folder


def one_pixel(images, labels):
    images[700, 3, 3, 0] ^= 1
    return images, labels


def one_label(images, labels):
    labels[3] = (labels[3] + 1) % 10
    return images, labels


CHANGES = {
    "reversed": lambda images, labels: (images[::-1], labels[::-1]),
    "permuted": lambda images, labels: (images[np.r_[1, 0, 2 : len(images)]],
                                        labels[np.r_[1, 0, 2 : len(labels)]]),
    "relabelled": lambda images, labels: (images, (labels + 1) % 10),
    "one label": one_label,
    "one pixel": one_pixel,
}  # fmt: skip


def refused(run, data, name):
    """The run refuses these examples by name, and changes nothing."""
    before = content(run.workdir)
    outcome = run.go(code=4, says=f"other {name} (digest ", ADABATCH_DATA_DIR=str(data))
    assert len(outcome.err.splitlines()) == 1 and "--allow-change dataset" in outcome.err
    assert content(run.workdir) == before


@pytest.mark.parametrize("change", CHANGES)
def test_other_examples_are_refused_by_name(oracle, begin, tmp_path, change):
    run = begin("carry")
    run.go("step.end:50:sigterm", code=143)
    refused(run, write_other(tmp_path / "other", "train", CHANGES[change]), "training examples")
    run.go()
    assert_same(run, oracle("carry"))


def test_a_changed_test_set_is_refused_too(oracle, begin, tmp_path):
    run = begin("carry")
    run.go("step.end:50:sigterm", code=143)
    refused(run, write_other(tmp_path / "other", "test", one_label), "examples of 'test'")
    run.go()
    assert_same(run, oracle("carry"))


def test_a_finished_run_is_compared_too(oracle, tmp_path):
    shutil.copytree(oracle("carry").workdir, tmp_path / "run")
    run = Run(tmp_path / "run", oracle("carry").arguments)
    other = write_other(tmp_path / "other", "train", CHANGES["one pixel"])
    refused(run, other, "training examples")
    run.go(says="finished already")
    assert_same(run, oracle("carry"))
    outcome = finish(start("doctor", str(run.workdir), ADABATCH_DATA_DIR=str(other)))
    assert outcome.code == 4 and "other training examples" in outcome.out


def test_with_leave_the_run_goes_on_with_others(oracle, begin, tmp_path):
    run = begin("carry")
    run.go("step.end:50:sigterm", code=143)
    other = str(write_other(tmp_path / "other", "train", CHANGES["relabelled"]))
    allowed = "--allow-change dataset"
    run.go("step.end:20:sigterm", 143, "other", allowed, ADABATCH_DATA_DIR=other)
    run.go(code=4, says="other training examples")
    run.go(ADABATCH_DATA_DIR=other)
    assert [(d["setting"], d["step"]) for d in run.summary()["decisions"]] == [("dataset", 50)]
    assert run.summary()["weights_digest"] != oracle("carry").summary()["weights_digest"]


def moved(data):
    return data.rename(data.with_name("moved"))


def touched(data):
    for path in data.rglob("*array_record*"):
        os.utime(path, (1, 1))
    return data


def written_anew(data):
    """The same records, compressed in other groups: other bytes in each file."""
    for path in data.rglob("*array_record*"):
        records = ArrayRecordReader(str(path)).read_all()
        writer = ArrayRecordWriter(str(path), "group_size:7")
        for record in records:
            writer.write(record)
        writer.close()
    return data


def without_what_was_kept(data):
    (kept,) = data.rglob("digests.json")
    kept.unlink()
    return data


@pytest.mark.parametrize("change", [moved, touched, written_anew, without_what_was_kept])
def test_the_same_examples_elsewhere_are_the_same(oracle, begin, data, change):
    run = begin("carry")
    run.go("step.end:50:sigterm", code=143, ADABATCH_DATA_DIR=str(data))
    data = str(change(data))
    run.go("step.end:20", code=KILLED, ADABATCH_DATA_DIR=data)
    run.go(further=f"--data.dir {data}")
    assert_same(run, oracle("carry"))
    for _ in range(2):
        run.go(says="finished already", further=f"--data.dir {data}")


@pytest.mark.parametrize("position", [0.05, 0.2, 0.4])
def test_a_damaged_file_is_named_before_it_is_trained_on(oracle, begin, data, position):
    run, environment = begin("carry"), {"ADABATCH_DATA_DIR": str(data)}
    run.go("step.end:50:sigterm", code=143, **environment)
    before, path = content(run.workdir), file_of(data)
    stat = path.stat()
    flip_bit(path, position)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    outcome = run.go(code=1, says=str(path), **environment)
    assert "prepare digits" in outcome.err and content(run.workdir) == before
    doctor = finish(start("doctor", str(run.workdir), **environment))
    assert doctor.code == 5 and f"{path} of dataset 'digits' isn't what was prepared" in doctor.out
    prepare("digits", data, overwrite=True)
    run.go(**environment)
    assert_same(run, oracle("carry"))


def test_a_file_that_was_exchanged_is_named_by_a_new_run(begin, data, tmp_path):
    other = write_other(tmp_path / "other", "train", CHANGES["reversed"])
    shutil.copy(file_of(other), file_of(data))
    outcome = begin("carry").go(ADABATCH_DATA_DIR=str(data))
    assert "warning: the file" in outcome.out and str(file_of(data)) in outcome.out
