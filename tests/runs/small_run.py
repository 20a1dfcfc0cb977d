"""A run of a tiny network, small enough to be repeated many times."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adabatch_jax.config import Layout
from adabatch_jax.data.sources import array_source
from adabatch_jax.runs.fit import fit
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState

N = 60
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(N, 5)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int32)
TRAIN = array_source({"x": X, "y": Y})
# Whole batches, one at a time: what is stopped by `on_step` and what isn't are laid out alike.
PLAIN = Layout(None, steps_per_dispatch=1)
TEST = array_source({"x": X[:17], "y": Y[:17]})


def apply(params, x):
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return hidden @ params["w2"]


def loss_fn(params, model_state, batch, rng):
    # Noise from the step's key, so that a wrong key shows in the weights: one number, for drawing
    # one per input would take most of the time to compile.
    x = batch["x"] + 0.01 * jax.random.uniform(rng)
    losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), batch["y"])
    seen = {"seen": model_state["seen"] + 1}
    return weighted_mean(losses, batch["weight"]), (seen, {})


def eval_fn(params, model_state, batch):
    hits = apply(params, batch["x"]).argmax(-1) == batch["y"]
    return {"accuracy": weighted_mean(hits, batch["weight"])}


def make_params():
    random = np.random.default_rng(1)
    shapes = {"w1": (5, 8), "b1": (8,), "w2": (8, 2)}
    return {n: random.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def train(plan, workdir=None, loss_fn=loss_fn, source=TRAIN, **kwargs):
    lr = coupled_learning_rate(plan, 0.05)
    tx = optax.sgd(lr, momentum=0.9)
    state = TrainState.create(params=make_params(), tx=tx, model_state={"seen": 0})
    defaults = dict(eval_fn=eval_fn, eval_source=TEST, eval_batch_size=8, log_every="4st", seed=5)
    defaults["layout"] = PLAIN
    kwargs = {**defaults, **kwargs}
    return fit(loss_fn, tx, state, source, plan, learning_rate=lr, workdir=workdir, **kwargs)


def reproducible(rows):
    return [
        {k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second"))}
        for row in rows
    ]
