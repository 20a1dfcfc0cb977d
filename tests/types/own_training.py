"""A user's file, as type checkers see it: nothing in it is wrong."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adabatch_jax as ab

Params = dict[str, jax.Array]

x = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
source = ab.array_source({"x": x, "y": x.sum(1)})
schedule: ab.Schedule = ab.exponential_growth(25, growth_factor=2, every="5ep", end_value=200)
plan: ab.BatchPlan = ab.make_plan(schedule, num_examples=len(source), duration="20ep")
sizes: tuple[int, ...] = plan.batch_sizes
first: ab.Phase = plan.phases[0]
listed = ab.piecewise_constant(128, {"20ep": 256, "40ep": 512})
decays = {"30ep": 0.1}
kept_sizes = {"20ep": 256, "40ep": 512}
grown = ab.growth_from_decay(128, decays)
others: list[ab.Schedule] = [
    ab.piecewise_constant(128, kept_sizes),
    ab.piecewise_constant(128, {2000: 256}),
    ab.piecewise_constant(128, {"1ep": 256, 200_000: 512}),
    ab.piecewise_constant(128, [("1ep", 256), ("2ep", 512)]),
    ab.growth_from_decay(128, {"30ep": 0.1}),
    ab.joined({"0ep": listed, "10ep": grown}),
    ab.joined({0: "128 x2 every 5ep", "10ep": 64}),
    ab.sampled(lambda epoch: int(32 * 1.1**epoch), every="1ep", unit="ep"),
    ab.sampled([8, 16, 32].__getitem__, every="1ep"),
]
ab.make_plan(kept_sizes, None, "1Msp")
ab.make_plan([("0ep", 128), ("20ep", 256)], 1000, "40ep")


def size_at(epoch: int) -> int:
    return 32 + epoch


def size_between(epoch: float) -> int:
    return int(32 + epoch)


by_epoch = ab.sampled(size_at, every="1ep")
by_half = ab.sampled(size_between, every="0.5ep")
base: ab.LearningRate = ab.parse_learning_rate("0.01 x0.375 every 5ep")
lr = ab.coupled_learning_rate(plan, base, coupling="sqrt")
warm = optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000)
fixed = ab.coupled_learning_rate(plan, warm, counts="steps")
tx = optax.sgd(lr, momentum=0.9)
shape = ab.batch_size_schedule(plan)(jnp.int32(0))
version: str = ab.__version__


def loss_fn(
    params: Params, model_state: Any, batch: dict[str, jax.Array], rng: jax.Array
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    errors = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return ab.weighted_mean(errors, batch["weight"]), (model_state, {})


def eval_fn(params: Params, model_state: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    errors = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return {"loss": ab.weighted_mean(errors, batch["weight"])}


def loader() -> Iterator[dict[str, Any]]:
    yield {"x": x, "y": x.sum(1)}


state = ab.TrainState.create(params={"w": jnp.zeros(8)}, tx=tx)
step = ab.compile_ahead(ab.make_train_step(loss_fn, tx, mesh=ab.data_mesh()), plan)
for batch in ab.batches(source, plan, mesh=ab.data_mesh(), prefetch=2):
    state, metrics = step(state, batch, jax.random.key(0))
    number: int = int(state.step)
    loss: float = float(metrics["loss"])
for batch in ab.rebatch(lambda epoch: loader(), plan, start_step=0):
    rows: int = len(batch["weight"])
for indices in ab.batch_indices(plan, seed=0):
    chosen: list[int] = list(indices)

for host_batch in ab.batches(source, plan):
    on_host: np.ndarray[Any, Any] = host_batch["x"]
    ab.weighted_mean(on_host, np.ones(len(on_host)))
    ab.example_keys(0, {"epoch": np.zeros(3, np.int32), "index": np.arange(3)})

ab.check_padding(loss_fn, state, {"x": x, "weight": np.ones(1000)}, jax.random.key(0))


def on_step(step: int, state: ab.TrainState, metrics: dict[str, jax.Array]) -> bool:
    return float(metrics["loss"]) < 0.1


def told(step: int, state: ab.TrainState, metrics: Mapping[str, jax.Array]) -> None:
    print(step, metrics["loss"])


ab.fit(loss_fn, tx, state, source, plan, on_step=on_step)
ab.fit(loss_fn, tx, state, source, plan, on_step=told, layout=ab.Layout(accumulation="fused"))
ab.Layout(microbatch_size="auto", input="resident", shard_params=True, device_memory="16GiB")
ab.Operation(on_nan="skip:3", on_save_error="warn")
ahead: ab.CompiledAhead[..., Any] = step
plain: ab.TrainStep = ab.make_train_step(loss_fn, tx)
rebatched: ab.Rebatched = ab.rebatch(loader(), plan)


def spread_out(sharding: jax.sharding.NamedSharding) -> Iterator[dict[str, Any]]:
    ab.make_train_step(loss_fn, tx, mesh=sharding)
    return ab.batches(source, plan, sharding=sharding, pad=True)


result: ab.FitResult = ab.fit(
    loss_fn, tx, state, source, plan, eval_fn=eval_fn, eval_source={"test": source}, seed=1,
    mesh=ab.data_mesh(),
    layout=ab.Layout(microbatch_size=100), keep=ab.Keep(newest=2),
    operation=ab.Operation(on_nan="skip:2"), on_step=lambda step, state, metrics: None,
)  # fmt: skip
history: list[dict[str, Any]] = result.history
figures: dict[str, float] = ab.evaluate(eval_fn, result.state, source, batch_size=100)
module = ab.models.create("cnn_digits", num_classes=10, image_shape=(8, 8, 1), seed=0)
params, model_state, our_loss, our_eval = ab.models.functions(module)
our_step = ab.make_train_step(our_loss, tx, microbatch_size=None)
try:
    ab.make_plan("128", num_examples=10, duration="1ep")
except ab.UsageError as error:
    code: int = error.exit_code
