"""Networks of a user's own through the commands: trained, planned, gone on with, used, refused."""

import json

import numpy as np
import pytest

import adabatch_jax as ab
from adabatch_jax import plan, train
from adabatch_jax.config import TrainConfig
from adabatch_jax.config.files import load_config

SHORT = "--epochs 2 --batch-schedule 8 --microbatch-size none --workdir run"

FUNCTIONS = """
import jax.numpy as jnp, numpy as np
from flax import nnx
import flax.linen as nn
import adabatch_jax as ab

rng = np.random.default_rng(0)
IMAGES = {"image": rng.integers(0, 256, (40, 8, 8, 1), np.uint8), "label": np.arange(40) % 3}
X = rng.normal(size=(40, 5)).astype(np.float32)
ROWS = {"x": X, "y": X @ np.arange(5, dtype=np.float32)}

def images(): return IMAGES, {name: array[:9] for name, array in IMAGES.items()}
def rows(): return ROWS, {name: array[:9] for name, array in ROWS.items()}

class Net(nnx.Module):  # as flax's own pages write one: nothing of it knows this package
    def __init__(self, num_features, num_classes, rngs):
        self.hidden = nnx.Linear(num_features, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.out = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.hidden(x.reshape(len(x), -1)))
        return self.out(self.dropout(nnx.relu(x)))

def net(num_classes, image_shape, seed):
    return Net(int(np.prod(image_shape)), num_classes, nnx.Rngs(seed))

def rgb(num_classes, image_shape, seed): return Net(8 * 8 * 3, num_classes, nnx.Rngs(seed))
def thousand(num_classes, image_shape, seed): return Net(64, 1000, nnx.Rngs(seed))
def linen(num_classes, image_shape, seed): return nn.Dense(num_classes)
def fails(num_classes, image_shape, seed): raise KeyError("gone")
def few(num_classes): return net
def pair(num_classes, image_shape, seed): return {}, {}

def regression(num_classes, image_shape, seed):
    assert num_classes is None and image_shape is None
    def mean_error(params, batch):
        return ab.weighted_mean((batch["x"] @ params["w"] - batch["y"]) ** 2, batch["weight"])
    def loss_fn(params, model_state, batch, rng):
        return mean_error(params, batch), (model_state, {})
    def eval_fn(params, model_state, batch):
        return {"error": mean_error(params, batch)}
    return {"w": jnp.zeros(5)}, {}, loss_fn, eval_fn

def no_eval(**given): return regression(**given)[:3]
"""


@pytest.fixture
def own(tmp_path, monkeypatch, command):
    """`mynet.py` in the current folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mynet.py").write_text(FUNCTIONS)
    return tmp_path


def test_an_nnx_module_as_flax_writes_it(own, command):
    flags = f"--dataset mynet.py:images --model mynet.py:net {SHORT}"
    planned = command(plan.main, f"{flags} --json")
    assert planned.code == 0 and json.loads(planned.out)["rows"][0]["batch_size"] == 8
    outcome = command(train.main, flags)
    assert outcome.code == 0, outcome.err
    assert "finished already" in command(train.main, flags).out
    run = ab.load_run("run")
    # Dropout is off and BatchNorm's averages are used, in its evaluations too.
    again = ab.load_run("run")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)[:9]
    probabilities = run.predict(images)
    np.testing.assert_array_equal(probabilities, again.predict(images))
    summary = json.loads((own / "run" / "summary.json").read_text())
    assert (probabilities.argmax(1) == np.arange(9) % 3).mean() == summary["test_accuracy"]
    assert sorted(run.params) == ["hidden", "norm", "out"]


def test_functions_of_ones_own_on_any_data(own, command):
    flags = f"--dataset mynet.py:rows --model mynet.py:regression {SHORT} --lr 0.01"
    planned = command(plan.main, f"{flags} --json")
    assert planned.code == 0 and json.loads(planned.out)["rows"][0]["batch_size"] == 8
    outcome = command(train.main, flags)
    assert outcome.code == 0, outcome.err
    run = ab.load_run("run")
    assert run.model is None and run.class_names is None
    x = np.random.default_rng(0)
    x.integers(0, 256, (40, 8, 8, 1), np.uint8)
    x = x.normal(size=(40, 5)).astype(np.float32)[:9]
    error = ((x @ np.asarray(run.params["w"]) - x @ np.arange(5)) ** 2).mean()
    summary = json.loads((own / "run" / "summary.json").read_text())
    np.testing.assert_allclose(summary["test_error"], error, rtol=1e-5)
    with pytest.raises(ab.UsageError, match="has no module to predict with; call your own"):
        run.predict(x)


def test_without_an_eval_fn_nothing_is_evaluated(own, command):
    flags = f"--dataset mynet.py:rows --model mynet.py:no_eval {SHORT} --lr 0.01"
    outcome = command(train.main, flags)
    assert outcome.code == 0 and "has no eval_fn, so nothing is evaluated" in outcome.out
    assert "test_" not in (own / "run" / "summary.json").read_text()


def test_a_config_file_holds_the_function_itself(own):
    (own / "config.py").write_text(
        "from adabatch_jax.config import TrainConfig\n"
        "def build(num_classes, image_shape, seed): ...\n"
        "config = TrainConfig(model=build, epochs=3)\n"
    )
    config = load_config(str(own / "config.py"))
    assert config.model == f"{own / 'config.py'}:build"
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.run_name == "digits-config.py_build"


REFUSED = {
    "rgb": "model: mynet.py:rgb can't take images of 8x8x1: ",
    "thousand": "shape (2, 1000), and 3 classes need logits of shape (2, 3)",
    "linen": "must return an nnx module, or … and returned one of type flax.linen",
    "fails": "mynet.py:fails fails with KeyError ('gone') when called with num_classes=3",
    "few": "must take the keywords num_classes, image_shape and seed (",
    "pair": "and returned (dict, dict)",
    "nte": "'mynet.py' has no 'nte'; did you mean 'net'?",
    "net --compute-dtype bfloat16": "compute_dtype: mynet.py:net is your own network",
    "net --batchnorm-group-size 4": "batchnorm_group_size: mynet.py:net is your own",
    "no_eval --data.flip": "AssertionError",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refusals(own, refused, arguments):
    flags = f"--dataset mynet.py:images {SHORT} --model mynet.py:{arguments}"
    refused(plan.main, flags, REFUSED[arguments])
    refused(train.main, flags, REFUSED[arguments])
    assert not (own / "run" / "config.json").exists()


def test_settings_of_images_are_not_left_out_unseen(own, refused):
    flags = f"--dataset mynet.py:rows --model mynet.py:regression {SHORT}"
    refused(train.main, f"{flags} --data.flip", "data.flip: mynet.py:regression brings a loss")


def test_what_can_not_fit_is_refused_by_a_plan_without_memory(refused):
    refused(plan.main, "--model resnet21 --no-memory", "no model 'resnet21'; there are cnn_digits")
    flags = "--dataset cifar10 --model resnet50 --no-memory"
    refused(plan.main, flags, "resnet50 takes 224x224 images, got 32x32")
