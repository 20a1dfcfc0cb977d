"""`compile_ahead`: the step's own numbers, and its programs are there when they are wanted."""

import gc
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from adabatch_jax.data.batches import batches
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.compiling_ahead import compile_ahead
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.train_step import make_train_step

N = 40
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
SOURCE = array_source({"x": X, "y": X @ np.arange(3, dtype=np.float32)})
PLAN = make_plan("4, 1ep: 10, 2ep: 8", num_examples=N, duration="3ep")
PARTIAL = make_plan("4, 1ep: 7, 2ep: 12", num_examples=N, duration="3ep", remainder="partial")
TX = optax.sgd(0.1, momentum=0.9)


def loss_fn(params, model_state, batch, rng):
    errors = (batch["x"] @ params["w"] - batch["y"]) ** 2
    return weighted_mean(errors, batch["weight"]), (model_state, {})


def counted(function):
    """A jitted function, and the threads and batch sizes that it was traced in."""
    traces = []

    def traced(params, batch):
        traces.append((threading.current_thread().name, len(batch["x"])))
        return function(params, batch)

    return jax.jit(traced), traces


def descend(params, batch):
    return params - 0.1 * jax.grad(lambda w: ((batch["x"] @ w - batch["y"]) ** 2).mean())(params)


def losses_of(step, **options):
    state = TrainState.create(params={"w": jnp.zeros(3)}, tx=TX)
    losses = []
    for batch in batches(SOURCE, PARTIAL, **options):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(metrics["loss"])
    return np.array(losses), state.params["w"]


@pytest.mark.parametrize("num_devices", [None, 1, 4])
@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_a_train_steps_bits_on_any_layout(num_devices, microbatch_size):
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    options = {"mesh": mesh, "microbatch_size": microbatch_size}
    expected = losses_of(make_train_step(loss_fn, TX, **options), **options)
    traced_here = []

    def traced(params, model_state, batch, rng):
        if not threading.current_thread().name.startswith("compile"):
            traced_here.append(batch["weight"].shape)
        return loss_fn(params, model_state, batch, rng)

    ahead = compile_ahead(make_train_step(traced, TX, **options), PARTIAL)
    for ours, theirs in zip(losses_of(ahead, **options), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(set(traced_here)) == 1  # the first; no other call had to compile
    ahead.close()


def test_the_first_at_once_and_the_others_in_the_background():
    step, traces = counted(descend)
    first, *rest = (batch for batch in batches(SOURCE, PLAN))
    ahead = compile_ahead(step, PLAN, (jnp.zeros(3), first))
    assert traces[0] == (threading.current_thread().name, 4)
    params = jnp.zeros(3)
    for batch in (first, *rest):
        params = ahead(params, batch)
    assert [size for _, size in traces] == [4, 10, 8]
    assert all(name.startswith("compile") for name, _ in traces[1:])


@pytest.mark.parametrize(
    "size, wanted", [(4, [4, 10, 8]), (10, [10, 8]), (8, [8]), (5, [4, 10, 8])]
)
def test_the_sizes_from_the_examples_on(size, wanted):
    step, traces = counted(descend)
    batch = {"x": X[:size], "y": X[:size, 0]}
    ahead = compile_ahead(step, PLAN, (jnp.zeros(3), batch), batch_argnums=1)
    for later in wanted:
        ahead(jnp.zeros(3), {"x": X[:later], "y": X[:later, 0]})
    assert [size for _, size in traces] == wanted


def test_a_size_that_comes_again_is_compiled_though_it_was_before_the_example():
    step, traces = counted(descend)
    plan = make_plan("4, 1ep: 10, 2ep: 4", num_examples=N, duration="3ep")
    ahead = compile_ahead(step, plan, (jnp.zeros(3), {"x": X[:10], "y": X[:10, 0]}))
    ahead(jnp.zeros(3), {"x": X[:4], "y": X[:4, 0]})
    assert [size for _, size in traces] == [10, 4]


def test_another_shape_is_the_steps_own():
    step, traces = counted(descend)
    ahead = compile_ahead(step, make_plan(4, N, "1ep"))
    ahead(jnp.zeros(3), {"x": X[:4], "y": X[:4, 0]})
    ours = ahead(jnp.zeros(3), {"x": X[:7], "y": X[:7, 0]})
    np.testing.assert_array_equal(ours, jax.jit(descend)(jnp.zeros(3), {"x": X[:7], "y": X[:7, 0]}))
    assert [size for _, size in traces] == [4, 7]


def test_other_types_than_the_examples_are_told_and_computed():
    step, _ = counted(descend)
    ahead = compile_ahead(step, PLAN)
    batch = {"x": X[:4], "y": X[:4, 0]}
    ahead(jnp.zeros(3), batch)
    with pytest.warns(UserWarning, match="compiles by itself from here on"):
        ours = ahead(jnp.zeros(3, jnp.bfloat16), batch)
    assert ours.dtype == step(jnp.zeros(3, jnp.bfloat16), batch).dtype
    ahead(jnp.zeros(3, jnp.bfloat16), batch)  # told once


def test_weak_types_stay_weak():
    step = jax.jit(lambda scale, batch: scale * batch)
    ahead = compile_ahead(step, make_plan(4, N, "1ep"))
    batch, scale = jnp.ones(4, jnp.bfloat16), jnp.asarray(0.5)
    assert scale.weak_type and ahead(scale, batch).dtype == step(scale, batch).dtype == jnp.bfloat16


def test_what_holds_in_a_with_block_holds_for_its_programs():
    step = jax.jit(lambda batch: batch * 2)
    with jax.enable_x64(True):
        ahead = compile_ahead(step, PLAN)
        for size in (4, 10, 8):
            assert ahead(np.ones(size)).dtype == np.float64


def test_which_argument_is_the_batch():
    step, plan = jax.jit(lambda x, y: (x.sum(), y.sum())), make_plan("3, 1ep: 5", N, "2ep")
    with pytest.raises(UsageError, match="2 of the 2 arguments .* `batch_argnums=1`"):
        compile_ahead(step, plan)(jnp.ones(3), jnp.ones((3, 3)))
    with pytest.raises(UsageError, match="none of the 2 arguments"):
        compile_ahead(step, plan)(jnp.ones(4), jnp.ones((4, 3)))
    weighted = {"x": jnp.ones(3), "weight": jnp.ones(3)}
    ours = jax.jit(lambda w, batch: w @ batch["x"])
    assert compile_ahead(ours, plan)(jnp.ones((3, 3)), weighted).tolist() == [3, 3, 3]
    both = compile_ahead(step, plan, (jnp.ones(3), jnp.ones((3, 3))), batch_argnums=(0, 1))
    assert both(jnp.ones(5), jnp.ones((5, 3)))[1] == 15
    assert step._cache_size() == 0
    for refused in (lambda batch: batch, jax.pmap(lambda batch: batch)):
        with pytest.raises(UsageError, match="what jax.jit, nnx.jit or make_train_step returns"):
            compile_ahead(refused, plan)


@pytest.mark.parametrize("by_name_only", [False, True])
def test_arguments_by_name(by_name_only):
    step, traces = counted(descend)
    if by_name_only:
        inner = step.__wrapped__
        step = jax.jit(lambda params, *, batch: inner(params, batch))
    ahead, ours, theirs = compile_ahead(step, PLAN), jnp.zeros(3), jnp.zeros(3)
    for batch in batches(SOURCE, PLAN):
        ours, theirs = ahead(batch=batch, params=ours), jax.jit(descend)(theirs, batch)
    np.testing.assert_array_equal(ours, theirs)
    assert [size for _, size in traces] == [4, 10, 8]
    assert all(name.startswith("compile") for name, _ in traces[1:])


def test_a_train_steps_arguments_by_name():
    state = TrainState.create(params={"w": jnp.zeros(3)}, tx=TX)
    ahead = compile_ahead(make_train_step(loss_fn, TX), PARTIAL)
    for batch in batches(SOURCE, PARTIAL):
        state, _ = ahead(state, rng=jax.random.key(0), batch=batch)
    np.testing.assert_array_equal(state.params["w"], losses_of(make_train_step(loss_fn, TX))[1])


def test_an_error_of_the_compiler_comes_where_the_program_is_wanted():
    def fails(params, batch):
        assert len(batch["x"]) != 10, "too large"
        return descend(params, batch)

    ahead = compile_ahead(jax.jit(fails), PLAN)
    ahead(jnp.zeros(3), {"x": X[:4], "y": X[:4, 0]})
    with pytest.raises(AssertionError, match="too large"):
        ahead(jnp.zeros(3), {"x": X[:10], "y": X[:10, 0]})
    ahead(jnp.zeros(3), {"x": X[:8], "y": X[:8, 0]})


def test_donated_arguments_and_a_mesh_of_ones_own():
    sharding = NamedSharding(data_mesh(jax.devices()[:2]), PartitionSpec("data"))
    step = jax.jit(descend, donate_argnums=0)
    ahead, ours, theirs = compile_ahead(step, PLAN), jnp.zeros(3), jnp.zeros(3)
    for batch in batches(SOURCE, PLAN):
        batch = jax.device_put({"x": batch["x"], "y": batch["y"]}, sharding)
        before = ours
        ours, theirs = ahead(ours, batch), jax.jit(descend)(theirs, batch)
        assert before.is_deleted()
    np.testing.assert_array_equal(ours, theirs)


def test_nnxs_jit_is_one():
    def train(step):
        model = nnx.Sequential(
            nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.BatchNorm(1, rngs=nnx.Rngs(0))
        )
        optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
        losses = [step(model, optimizer, batch) for batch in batches(SOURCE, PLAN)]
        return np.array(losses), np.asarray(model.layers[1].mean[...])

    def step(model, optimizer, batch):
        def loss(model):
            return ((model(batch["x"])[:, 0] - batch["y"]) ** 2).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    ahead = compile_ahead(nnx.jit(step), PLAN)
    for ours, theirs in zip(train(ahead), train(nnx.jit(step)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def slow(params, batch):
    time.sleep(0.3)  # while it is traced
    return descend(params, batch)


def test_the_thread_ends_with_the_object():
    step, traces = counted(slow)
    plan = make_plan("2 x2 every 1ep", num_examples=N, duration="5ep")
    ahead = compile_ahead(step, plan, (jnp.zeros(3), {"x": X[:2], "y": X[:2, 0]}))
    del ahead
    gc.collect()
    time.sleep(1.2)
    assert len(traces) <= 2


def test_a_process_that_ends_does_not_wait_for_what_it_will_not_need():
    code = (
        "import time, jax, jax.numpy as jnp, adabatch_jax as ab\n"
        "def slow(batch):\n    print('traced', flush=True); time.sleep(1); return batch.sum()\n"
        "plan = ab.make_plan('2 x2 every 2sp', None, '100sp')\n"
        "step = ab.compile_ahead(jax.jit(slow), plan, (jnp.ones(2),))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("traced") <= 2
