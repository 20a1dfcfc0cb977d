"""Small networks, losses and batches that the tests of the train step share."""

import jax
import numpy as np
import optax

from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState


def conv(x, w):
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def mlp(params, images):
    x = images.reshape(images.shape[0], -1)
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


def cnn(params, images):
    x = jax.nn.relu(conv(images, params["w1"]))
    return jax.nn.relu(conv(x, params["w2"])).mean(axis=(1, 2)) @ params["w3"]


SHAPES = {
    mlp: {"w1": (64, 128), "w2": (128, 10)},
    cnn: {"w1": (3, 3, 1, 8), "w2": (3, 3, 8, 16), "w3": (16, 10)},
}


def make_params(net, seed=0):
    rng = np.random.default_rng(seed)
    shapes = SHAPES[net]
    return {k: rng.normal(0, 0.2, s).astype(np.float32) for k, s in shapes.items()}


def make_loss(net):
    def loss_fn(params, model_state, batch, rng):
        logits = net(params, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        hits = logits.argmax(-1) == batch["label"]
        accuracy = weighted_mean(hits, batch["weight"])
        return weighted_mean(losses, batch["weight"]), (model_state, {"accuracy": accuracy})

    return loss_fn


def make_batch(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.normal(size=(size, 8, 8, 1)).astype(np.float32),
        "label": rng.integers(0, 10, size).astype(np.int32),
        "weight": np.ones(size, np.float32),
    }


def linear_loss(params, model_state, batch, rng):
    """A loss whose gradient is the batch's weighted mean of x."""
    mean = weighted_mean(batch["x"], batch["weight"])
    return params["w"] @ mean, (model_state, {"x": mean})


def linear_batch(weights):
    weights = np.asarray(weights, np.float32)
    x = np.arange(weights.size * 2, dtype=np.float32).reshape(weights.shape + (2,))
    return {"x": x, "weight": weights}


def linear_state(model_state=None):
    params = {"w": np.zeros(2, np.float32)}
    return TrainState.create(params=params, tx=optax.sgd(1.0), model_state=model_state)
