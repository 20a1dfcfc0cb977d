"""A trained run is used: loaded, exported, asked about files, and another one begins with it."""

import json
import shutil

import cv2
import numpy as np
import pytest

import adabatch_jax as ab
from adabatch_jax import export, predict, train
from adabatch_jax.models import create, load_torch_weights
from adabatch_jax.runs.weight_files import read_arrays_of_file
from adabatch_jax.training.weights_digest import weights_digest
from tests.run_folders import content

SHORT = "--batch-schedule 64 --microbatch-size none --lr 0.1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The default network after three epochs of the digits, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main([*SHORT.split(), "--epochs", "3", "--workdir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def test_set():
    source = ab.tfds_source("digits", "test")
    return source.read(np.arange(len(source)))


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_run_is_as_good_on_raw_images_as_it_said(trained, test_set):
    before = content(trained)
    run = ab.load_run(trained)
    images, labels = test_set["image"], test_set["label"]
    probabilities = run.predict(images)
    assert (probabilities.argmax(1) == labels).mean() == summary_of(trained)["test_accuracy"]
    assert probabilities.dtype == np.float32 and probabilities.shape == (len(images), 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        run.predict(images.astype(np.float64) / 255), probabilities, atol=1e-5
    )
    assert weights_digest(run.state) == summary_of(trained)["weights_digest"]
    assert run.config.model == "cnn_digits" and run.class_names == tuple("0123456789")
    assert run.step == run.plan.num_steps == int(run.state.step)
    # Batches and their padding change nothing, not one image and not none.
    np.testing.assert_allclose(run.predict(images[:3]), probabilities[:3], atol=1e-6)
    assert run.predict(images[:0]).shape == (0, 10)
    logits = run.model((images[:5] / 255 - 0.3052).astype(np.float32) / 0.376, train=False)
    exps = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(exps / exps.sum(1, keepdims=True), probabilities[:5], atol=1e-5)
    assert content(trained) == before


def test_any_checkpoint_can_be_had(trained, test_set):
    rows = {row["step"]: row["test_accuracy"] for row in rows_of(trained) if "test_accuracy" in row}
    best = max(rows, key=lambda step: (rows[step], step))
    for run, step in (
        (ab.load_run(trained, best=True), best), (ab.load_run(trained, step=46), 46)
    ):  # fmt: skip
        found = run.predict(test_set["image"]).argmax(1) == test_set["label"]
        assert run.step == step and found.mean() == rows[step]
    for given, said in (
        ({"step": 351}, "no checkpoint of update 351; there are 23, 46, 68."),
        ({"step": 23, "best": True}, "give one of them"),
        ({"like": {}}, "`like` must be a TrainState"),
    ):
        with pytest.raises(ab.UsageError, match=said):
            ab.load_run(trained, **given)
    with pytest.raises(ab.UsageError, match="there is no run's folder"):
        ab.load_run(trained / "nothing")
    with pytest.raises(ab.UsageError, match="is no run's folder"):
        ab.load_run(trained.parent)


def test_damaged_checkpoints_are_passed_over(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    manifest = folder / "checkpoints" / "68" / "manifest"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    assert ab.load_run(folder).step == 46
    with pytest.raises(ab.RestoreError, match="checkpoint 68 in .* can't be used .manifest was"):
        ab.load_run(folder, step=68)
    # What dataset.json says of mean and deviation isn't believed: the checkpoint has its own.
    (folder / "dataset.json").write_text("{}")
    assert ab.load_run(folder).data.mean == (0.3052,)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:, :7], r"shape \(N, 8, 8, 1\), got \(355, 7, 8, 1\)"),
        (lambda x: x[0], r"got \(8, 8, 1\)"),
        (lambda x: x.astype(np.float32), "pixels in 0..1, .* got 0 to 255"),
        (lambda x: x / 255 - 0.3, "neither normalized"),
        (lambda x: x / np.float32("nan"), "pixels in 0..1"),
        (lambda x: x.astype(np.int64), "uint8 or floating-point, got int64"),
    ],
)
def test_images_that_would_be_misread_are_refused(trained, test_set, change, said):
    with pytest.raises(ab.UsageError, match=said):
        ab.load_run(trained).predict(change(test_set["image"]))


def test_exported(trained, tmp_path, command, refused):
    run = ab.load_run(trained)
    for name in ("w.safetensors", "v.npz"):
        outcome = command(export.main, f"{trained} --to {name}")
        assert outcome.code == 0 and "6 arrays, 9,930 numbers, of update 68" in outcome.out
        arrays = read_arrays_of_file(tmp_path / name)
        np.testing.assert_array_equal(arrays["params.head.bias"], run.params["head"]["bias"])
    about = json.loads((tmp_path / "w.json").read_text())
    assert about["network"] == "cnn_digits" and about["class_names"] == list("0123456789")
    assert about["weights_digest"] == summary_of(trained)["weights_digest"]
    assert about["normalization"] == {"divide_by": 255, "mean": [0.3052], "std": [0.376]}
    assert command(export.main, f"{trained} --to t.npz --torch-names --step 23").code == 0
    model = create("cnn_digits", 10, (8, 8, 1), seed=5)
    load_torch_weights(model, read_arrays_of_file(tmp_path / "t.npz"))
    earlier = ab.load_run(trained, step=23).params["conv1"]["kernel"]
    np.testing.assert_array_equal(model.conv1.kernel[...], earlier)
    (tmp_path / "mine.json").write_text("{}")
    refused(export.main, f"{trained} --to mine.npz", "--to: 'mine.json' … something else")
    refused(export.main, f"{trained} --to w.pth", "--to: 'w.pth' must end in .safetensors or .npz")
    refused(export.main, f"{trained} --to no/w.npz", "no", code=5)


def test_files_are_asked_about(trained, test_set, tmp_path, command, refused):
    expected = ab.load_run(trained).predict(test_set["image"][:3])
    for number, image in enumerate(test_set["image"][:3]):
        cv2.imwrite(f"{number}.png", image)
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:50])
    cv2.imwrite("big.png", np.zeros((9, 9), np.uint8))
    outcome = command(predict.main, f"{trained} 0.png 1.png 2.png --top 2")
    first = np.argsort(-expected[0])[:2]
    assert outcome.out.splitlines()[0] == (
        f"0.png: {first[0]} {expected[0][first[0]]:.4f}, {first[1]} {expected[0][first[1]]:.4f}"
    )
    outcome = command(predict.main, f"{trained} 2.png bad.png 0.png big.png gone.png --json")
    found = json.loads(outcome.out)
    assert [one["file"] for one in found][1:3] == ["bad.png", "0.png"] and outcome.code == 5
    assert found[0]["classes"][0]["class"] == str(expected[2].argmax())
    assert found[1] == {"file": "bad.png", "error": "cut off"}
    said = "3 of 5 files can't be read: bad.png (cut off), big.png (9x9 pixels … gone.png (No such"
    assert all(piece in outcome.err for piece in said.split(" … "))
    refused(predict.main, f"{trained} 0.png --top 0", "--top: must be at least 1")


OWN = """
import numpy as np
rng = np.random.default_rng(0)
def part(count, classes):
    images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
    return {"image": images, "label": np.arange(count) % classes}
def three(): return part(40, 3), part(9, 3)
def ten(): return part(40, 10), part(9, 10)
def named():
    import adabatch_jax as ab
    train, test = map(ab.array_source, ten())
    train.class_names = tuple("abcdefghij")
    return train, test
"""


@pytest.fixture
def begun(trained, tmp_path, command):
    """`begun(data, weights)`: the outcome and the folder of a run that begins with weights."""
    (tmp_path / "mydata.py").write_text(OWN)

    def begin(data, weights, further=""):
        flags = f"{SHORT} --epochs 1 --batch-schedule 40 --dataset mydata.py:{data} --lr 1e-30"
        return command(train.main, f"{flags} --init-from {weights} --workdir begun {further}")

    return begin


@pytest.mark.parametrize("source", ["run", "w.safetensors", "w.npz --torch-names"])
def test_a_run_begins_with_given_weights(trained, begun, command, tmp_path, source):
    if source == "run":
        source = str(trained)
    else:
        assert command(export.main, f"{trained} --to {source}").code == 0
        source = source.partition(" ")[0]
    outcome = begun("three", source)
    assert outcome.code == 0, outcome.err
    assert "params.head.bias, params.head.kernel begin anew: 10 classes there, 3" in outcome.out
    theirs, ours = ab.load_run(trained), ab.load_run("begun")
    # No rate, no decay to speak of: what it began with.
    np.testing.assert_allclose(
        ours.params["conv2"]["kernel"], theirs.params["conv2"]["kernel"], rtol=1e-6
    )
    fresh = create("cnn_digits", 3, (8, 8, 1)).head.kernel[...]
    np.testing.assert_allclose(ours.params["head"]["kernel"], fresh, rtol=1e-6)
    decision = summary_of(tmp_path / "begun")["decisions"][0]
    assert decision["kind"] == "init_from" and decision["from"] == source
    assert decision["anew"] == ["params.head.bias", "params.head.kernel"]
    other = begun("three", "elsewhere")
    assert other.code == 4 and f"init_from='{source}', not 'elsewhere'" in other.err


def test_classes_by_name(trained, begun):
    assert "begin anew" not in begun("ten", trained).out  # both call them 0 to 9
    shutil.rmtree("begun")
    assert "begin anew: the classes have other names" in begun("named", trained).out


def test_a_run_goes_on_without_the_weights_it_began_with(trained, begun, tmp_path):
    copied = shutil.copytree(trained, tmp_path / "copied")
    assert begun("ten", "copied").code == 0
    digest = summary_of(tmp_path / "begun")["decisions"][0]["digest"]
    shutil.rmtree(copied)
    longer = begun("ten", "copied", "--epochs 2")
    assert longer.code == 0 and "begins with" not in longer.out
    assert summary_of(tmp_path / "begun")["decisions"][0]["digest"] == digest


def test_weights_that_do_not_fit_are_refused_by_name(trained, begun, tmp_path):
    np.savez(tmp_path / "some.npz", **{"params.conv1.kernel": np.zeros((5, 5, 1, 16), np.float32)})
    for weights, flags, said in (
        (trained, "--model cnn_fashion", "don't fit cnn_fashion: model_state.bn1.mean is absent"),
        ("nothere.npz", "", "'nothere.npz' is neither a run's folder nor a file"),
        ("some.npz", "", "params.conv1.bias is absent there and [16] here, and 5 more don't fit"),
    ):
        outcome = begun("ten", weights, flags)
        assert outcome.code == 2 and said in outcome.err, outcome.err
        assert not (tmp_path / "begun" / "config.json").exists()


def test_fit_goes_on_from_a_loaded_run(trained, test_set):
    import optax

    run, tx = ab.load_run(trained), optax.sgd(0.0)
    params, model_state, loss_fn, eval_fn = ab.models.functions(run.model)
    state = ab.TrainState.create(params=run.params, tx=tx, model_state=run.state.model_state)
    source = ab.array_source(test_set)
    result = ab.fit(loss_fn, tx, state, source, ab.make_plan("71", 355, "1ep"))
    np.testing.assert_array_equal(result.state.params["head"]["bias"], run.params["head"]["bias"])
    np.testing.assert_array_equal(params["head"]["bias"], run.params["head"]["bias"])
