"""Whatever the layout of a run, it is the same run; and its programs are there in time."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adabatch_jax import TrainState, array_source, coupled_learning_rate, data_mesh, fit, make_plan
from adabatch_jax.config import Layout
from adabatch_jax.models.convolution import canonical_conv2d
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.setup import set_up
from adabatch_jax.training.update import Update

N = 50
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
SOURCE = array_source({"x": X, "y": np.sin(X @ np.arange(6)).astype(np.float32)})
PLAN = make_plan("4, 1ep: 12, 2ep: 7", num_examples=N, duration="3.5ep")
# One size that 4 devices divide, one that nothing divides, and the rest at the end.
SHORT_PLAN = make_plan("4, 1ep: 7", num_examples=N, duration="1.5ep")
RATE = coupled_learning_rate(PLAN, 0.05)
TX = optax.sgd(RATE, momentum=0.9)


def loss_fn(params, model_state, batch, rng):
    hidden = jnp.tanh(batch["x"] @ params["w1"])
    errors = (hidden @ params["w2"] - batch["y"]) ** 2
    noise = jax.random.uniform(rng)
    state = {"mean": 0.9 * model_state["mean"] + 0.1 * weighted_mean(errors, batch["weight"])}
    return weighted_mean(errors, batch["weight"]), (state, {"noise": noise})


def eval_fn(params, model_state, batch):
    errors = (jnp.tanh(batch["x"] @ params["w1"]) @ params["w2"] - batch["y"]) ** 2
    return {"loss": weighted_mean(errors, batch["weight"])}


def new_state():
    rng = np.random.default_rng(1)
    params = {"w1": rng.normal(size=(6, 8)).astype(np.float32), "w2": np.ones(8, np.float32)}
    return TrainState.create(params=params, tx=TX, model_state={"mean": jnp.zeros(())})


def laid_out(options):
    """The arguments of `fit`, with those of its layout by name; by default the plainest."""
    names = [field.name for field in dataclasses.fields(Layout)]
    fields = {name: options[name] for name in names if name in options}
    layout = Layout(**{"microbatch_size": None, "steps_per_dispatch": 1} | fields)
    return {k: v for k, v in options.items() if k not in names} | {"layout": layout}


def train(loss=loss_fn, plan=PLAN, **options):
    options = {"eval_every": "1ep", "log_every": "5st"} | options
    evaluation = {"eval_fn": eval_fn, "eval_source": SOURCE}
    return fit(
        loss, TX, new_state(), SOURCE, plan, **evaluation, learning_rate=RATE, **laid_out(options)
    )


def reproducible(result):
    return [
        {k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second"))}
        for row in result.history
    ]


def equal_bits(one, other):
    return one.summary["weights_digest"] == other.summary["weights_digest"] and reproducible(
        one
    ) == reproducible(other)


@pytest.fixture(scope="module")
def plain():
    return train()


@pytest.mark.parametrize(
    "options",
    [{}, {"microbatch_size": 3}, {"mesh": 4, "steps_per_dispatch": 3}],
    ids=["plain", "micro-batches", "mesh"],
)
def test_resident_and_streaming_input_give_the_same_bits(plain, options):
    if "mesh" in options:
        options = options | {"mesh": data_mesh(jax.devices()[:4])}
    if options:
        options = options | {"plan": SHORT_PLAN}
    from_memory = train(**options) if options else plain
    assert equal_bits(from_memory, train(input="resident", **options))
    assert equal_bits(from_memory, train(input="streaming", **options))


@pytest.mark.parametrize("number", [2, 8])
def test_several_updates_per_dispatch_are_the_same_updates(plain, number):
    together = train(steps_per_dispatch=number)
    for row, alone in zip(together.history, plain.history, strict=True):
        assert row["step"] == alone["step"] and row["train_noise"] == alone["train_noise"]
        assert row["examples_digest"] == alone["examples_digest"]
        assert row["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
    for leaf, wanted in zip(
        jax.tree.leaves(together.state), jax.tree.leaves(plain.state), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"steps_per_dispatch": 4}, {"accumulation": "split"}])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, options):
    options = options | {"microbatch_size": 5}
    whole = train(**options)
    train(**options, workdir=tmp_path, on_step=lambda finished, *_: finished >= 9)
    rest = train(**options, workdir=tmp_path)
    assert rest.summary["weights_digest"] == whole.summary["weights_digest"]
    assert reproducible(rest) == reproducible(whole)


@pytest.mark.parametrize("num_devices", [1, 4])
def test_split_accumulation_is_fused_accumulation(num_devices):
    mesh = data_mesh(jax.devices()[:num_devices]) if num_devices > 1 else None
    layout = {"microbatch_size": 4, "mesh": mesh}
    fused = train(**layout)
    split = train(**layout, accumulation="split", steps_per_dispatch="auto")
    for row, wanted in zip(split.history, fused.history, strict=True):
        assert row["examples_digest"] == wanted["examples_digest"]
        assert row["train_loss"] == pytest.approx(wanted["train_loss"], rel=1e-5)
        assert row["train_noise"] == pytest.approx(wanted["train_noise"], rel=1e-5)
    for leaf, wanted in zip(
        jax.tree.leaves(split.state), jax.tree.leaves(fused.state), strict=True
    ):
        np.testing.assert_allclose(leaf, wanted, rtol=2e-5, atol=1e-6)


def test_split_accumulation_needs_no_program_for_another_size():
    """However many batch sizes a plan has, each micro-batch's shape is traced once."""
    traced = []

    def counted(params, model_state, batch, rng):
        traced.append(batch["x"].shape[0])
        return loss_fn(params, model_state, batch, rng)

    plan = make_plan("8, 1ep: 12, 2ep: 20, 3ep: 31", num_examples=N, duration="4ep")
    train(counted, plan, microbatch_size=8, accumulation="split")
    # The shapes of the metrics, the program, that of the last batch, which is a partial one, and
    # the trial with padding.
    assert set(traced) == {8, 5} and len(traced) <= 4


def test_no_program_is_traced_after_the_start_of_its_phase():
    """When a phase's first update is dispatched, its program was traced before."""
    traced, dispatched = [], []
    sizes = [step.num_real for step in PLAN.steps()]
    assert set(sizes) == {4, 12, 7, 5}  # the last one is partial

    def counted(params, model_state, batch, rng):
        traced.append(batch["x"].shape[0])
        return loss_fn(params, model_state, batch, rng)

    def on_step(finished, state, metrics):
        dispatched.append((sizes[finished - 1], tuple(traced)))

    train(counted, on_step=on_step)
    assert sorted(traced) == sorted(set(sizes))
    first = dispatched[0]
    assert {4, 12} <= set(first[1])  # the first and the largest, before anything is trained
    assert all(size in before for size, before in dispatched)
    assert dispatched[-1][1] == tuple(traced)


def test_the_loop_uploads_nothing_implicitly():
    entered = []

    def on_step(finished, state, metrics):
        if not entered:
            entered.append(jax.transfer_guard("disallow"))
            entered[0].__enter__()

    try:
        train(steps_per_dispatch=2, on_step=on_step)
    finally:
        entered[0].__exit__(None, None, None)


def test_what_does_not_fit_is_refused_before_training():
    steps = []
    with pytest.raises(UsageError, match=r"batch 12 \(micro-batch 12\) .*'auto'"):
        train(device_memory=100, on_step=lambda *_: steps.append(1))
    with pytest.raises(UsageError, match="micro-batch 1: .* bytes"):
        train(device_memory=100, microbatch_size="auto")
    with pytest.raises(UsageError, match="resident: .* 1,400 bytes"):
        train(device_memory=1000, input="resident")
    with pytest.raises(UsageError, match="8 devices"):
        plan = make_plan(4, N, "1ep")
        train(plan=plan, mesh=data_mesh())
    assert not steps


def test_an_automatic_micro_batch_fits(tmp_path):
    """The limit lies between what the whole batch and a micro-batch need."""
    plan = make_plan("16 x4 every 1ep max 1024", num_examples=2048, duration="4ep")
    x = np.zeros((2048, 6), np.float32)
    source = array_source({"x": x, "y": x[:, 0]})

    def run(**options):
        return fit(
            loss_fn, TX, new_state(), source, plan, workdir=tmp_path / "run",
            log_every="1ep", checkpoint_every="2ep", **laid_out({"input": "streaming"} | options),
        )  # fmt: skip

    with pytest.raises(UsageError, match=r"needs [\d,]+ bytes"):
        run(device_memory=60_000)
    result = run(device_memory=60_000, microbatch_size="auto")
    assert result.state.step == plan.num_steps
    layout = json.loads((tmp_path / "run" / "environment.json").read_text())["layout"]
    assert 1 <= layout["microbatch_size"] < 1024


def test_short_memory_costs_residence_before_micro_batches(tmp_path):
    plan = make_plan("8 x2 every 1ep max 16", num_examples=2000, duration="2ep")
    x = np.zeros((2000, 6), np.float32)
    source = array_source({"x": x, "y": x[:, 0]})

    def layout(**options):
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        fit(
            loss_fn, TX, new_state(), source, plan, eval_fn=eval_fn, eval_source=source,
            workdir=folder, log_every="1ep", **laid_out({"device_memory": 100_000} | options),
        )  # fmt: skip
        return json.loads((folder / "environment.json").read_text())["layout"]

    # Both sets take 56,000 bytes: together they don't fit, one does.
    assert layout(microbatch_size="auto")["microbatch_size"] is None
    assert layout(microbatch_size="auto", device_memory=57_000)["microbatch_size"] is None
    with pytest.raises(UsageError, match="batch 16 .* resident input included"):
        layout(input="resident", device_memory=57_000)


def test_a_micro_batch_that_does_not_fit_any_more_is_chosen_anew(tmp_path):
    plan = make_plan("16 x4 every 1ep max 1024", num_examples=2048, duration="4ep")
    x = np.zeros((2048, 6), np.float32)
    source = array_source({"x": x, "y": x[:, 0]})

    def run(**options):
        return fit(
            loss_fn, TX, new_state(), source, plan, workdir=tmp_path, log_every="1ep",
            **laid_out({"input": "streaming", "microbatch_size": "auto"} | options),
        )  # fmt: skip

    run(on_step=lambda finished, *_: finished == 10)
    environment = tmp_path / "environment.json"
    assert json.loads(environment.read_text())["layout"]["microbatch_size"] is None
    result = run(device_memory=60_000)
    assert result.state.step == plan.num_steps
    assert 1 <= json.loads(environment.read_text())["layout"]["microbatch_size"] < 1024


def test_metrics_are_numbers():
    def of_shape(params, model_state, batch, rng):
        loss, (state, _) = loss_fn(params, model_state, batch, rng)
        return loss, (state, {"per": jnp.ones(3) * loss})

    with pytest.raises(UsageError, match=r"loss_fn's 'per' has the shape \(3,\)"):
        fit(of_shape, TX, new_state(), SOURCE, PLAN)
    with pytest.raises(UsageError, match=r"eval_fn's 'per' has the shape \(2,\)"):
        fit(
            loss_fn, TX, new_state(), SOURCE, PLAN, eval_source=SOURCE,
            eval_fn=lambda params, model_state, batch: {"per": jnp.zeros(2)},
        )  # fmt: skip


def test_convolutions_that_a_loop_would_slow_down_are_dispatched_one_by_one():
    images = np.random.default_rng(0).normal(size=(32, 6, 6, 2)).astype(np.float32)
    source = array_source({"image": images})
    tx = optax.sgd(0.1)

    def convolve(params, model_state, batch, rng):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            batch["image"], params["w"], (1, 1), "SAME", None, None, layout
        )
        return weighted_mean((y**2).mean((1, 2, 3)), batch["weight"]), (model_state, {})

    def steps_per_dispatch(loss_fn, wanted):
        state = TrainState.create(params={"w": jnp.ones((3, 3, 2, 2))}, tx=tx)
        update, rng, options = (
            Update(loss_fn, tx),
            jax.random.key(0),
            Layout(None, steps_per_dispatch=wanted),
        )
        plan = make_plan("4, 1ep: 8", 32, "2ep")
        setup = set_up(update, state, rng, source, plan, 0, 0, options, {}, lambda text: None)
        setup.close()
        return setup.layout["steps_per_dispatch"]

    def conv2d(params, model_state, batch, rng):
        y = canonical_conv2d(batch["image"], params["w"], (1, 1), ((1, 1), (1, 1)))
        return weighted_mean((y**2).mean((1, 2, 3)), batch["weight"]), (model_state, {})

    assert steps_per_dispatch(convolve, "auto") == 1
    assert steps_per_dispatch(convolve, 4) == 4  # as asked for
    assert steps_per_dispatch(conv2d, "auto") > 1
