"""Adam across a change of the batch, against a loop in float64 with the product of its betas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adabatch_jax as ab

NUM_EXAMPLES, WIDTH = 96, 3
PLAN = ab.make_plan("4, 2st: 8, 5st: 32, 7st: 8", NUM_EXAMPLES, "160sp")
RNG = np.random.default_rng(0)
SOURCE = ab.array_source({"x": RNG.normal(size=(NUM_EXAMPLES, WIDTH)).astype(np.float32)})
BEGIN = np.array([0.5, -0.25, 1.0])


def reference(plan, lr, b1, b2, eps=0.0, weight_decay=0.0, corrected=True):
    """The weights after each update, of the textbook's Adam whose betas and rates are functions."""
    w, m, v, p1, p2 = BEGIN.copy(), 0.0, 0.0, 1.0, 1.0
    rows = SOURCE.read(np.arange(NUM_EXAMPLES))["x"].astype(float)
    track = []
    for step in plan.steps():
        order = ab.example_indices(NUM_EXAMPLES, 0, step.start_sample, step.num_real)
        kappa = step.batch_size / plan.phases[0].batch_size
        grad = w - rows[order].mean(0)
        beta1, beta2 = b1(kappa), b2(kappa)
        m, v = beta1 * m + (1 - beta1) * grad, beta2 * v + (1 - beta2) * grad**2
        p1, p2 = p1 * beta1, p2 * beta2
        by1, by2 = (
            (1 - p1, 1 - p2)
            if corrected
            else (1 - beta1 ** (step.index + 1), 1 - beta2 ** (step.index + 1))
        )
        direction = m / by1 / (np.sqrt(v / by2) + eps / np.sqrt(kappa))
        w = w - lr * np.sqrt(kappa) * (direction + weight_decay * np.sqrt(kappa) * w)
        track.append(w)
    return np.array(track)


def loss_fn(params, model_state, batch, rng):
    errors = 0.5 * ((params["w"][None] - batch["x"]) ** 2).sum(-1)
    return ab.weighted_mean(errors, batch["weight"]), (model_state, {})


def trained(tx, microbatch_size=None, plan=PLAN):
    state = ab.TrainState.create(params={"w": jnp.asarray(BEGIN, jnp.float32)}, tx=tx)
    step = ab.make_train_step(loss_fn, tx, microbatch_size=microbatch_size)
    track = []
    for batch in ab.batches(SOURCE, plan, seed=0, microbatch_size=microbatch_size):
        state, _ = step(state, batch, jax.random.key(0))
        track.append(np.asarray(state.params["w"]))
    return np.array(track)


RATE = ab.coupled_learning_rate(PLAN, 0.01, "sqrt", optimizer="adam")


@pytest.mark.parametrize("microbatch_size", [None, 4, 3])
def test_it_is_adam_with_the_product_of_its_betas(microbatch_size):
    tx = ab.coupled_adamw(PLAN, RATE, 0.9, 0.99, eps=1e-2, weight_decay=0.1)
    got = trained(tx, microbatch_size)
    expected = reference(PLAN, 0.01, lambda k: 0.9**k, lambda k: 0.99**k, 1e-2, 0.1)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_counting_updates_would_be_another_adam():
    exact = reference(PLAN, 0.01, lambda k: 0.9**k, lambda k: 0.99**k)
    counted = reference(PLAN, 0.01, lambda k: 0.9**k, lambda k: 0.99**k, corrected=False)
    assert np.abs(exact - counted).max() > 1e-3


def test_first_order_is_what_malladi_et_al_derive():
    tx = ab.coupled_adamw(PLAN, RATE, 0.9, 0.99, 1e-2, 0.0, first_order=True)
    betas = (lambda k: 1 - k * (1 - 0.9), lambda k: 1 - k * (1 - 0.99))
    np.testing.assert_allclose(
        trained(tx), reference(PLAN, 0.01, *betas, 1e-2), rtol=2e-5, atol=2e-6
    )
    large = ab.make_plan("4, 8sp: 64", None, "1Ksp")
    assert float(
        ab.half_life_in_samples(ab.make_plan("4, 8sp: 16", None, "1Ksp"), 0.999, first_order=True)(
            2
        )
    ) == pytest.approx(0.996, abs=1e-7)
    with pytest.raises(ab.UsageError, match="decay 0.9 of batch size 64 is -0.6, below 0"):
        ab.half_life_in_samples(large, 0.9, first_order=True)


def test_constant_betas_are_optax():
    tx = optax.chain(ab.scale_by_adam(0.9, 0.99), optax.scale_by_learning_rate(RATE))
    optaxs = optax.adam(RATE, 0.9, 0.99)
    np.testing.assert_allclose(trained(tx), trained(optaxs), rtol=1e-5, atol=1e-6)


def test_hyperparameters_may_be_injected():
    b1, b2 = (ab.half_life_in_samples(PLAN, b) for b in (0.9, 0.99))
    injected = optax.chain(
        optax.inject_hyperparams(ab.scale_by_adam)(b1=b1, b2=b2, eps=1e-8),
        optax.scale_by_learning_rate(RATE),
    )
    own = optax.chain(ab.scale_by_adam(b1, b2), optax.scale_by_learning_rate(RATE))
    np.testing.assert_allclose(trained(injected), trained(own), rtol=1e-6, atol=1e-7)


def test_with_optax_multi_steps_an_update_is_one():
    """In the user's own loop of micro-batches the betas follow updates, not calls."""
    plan = ab.make_plan("4, 8sp: 8, 32sp: 16", NUM_EXAMPLES, "96sp")
    lr = ab.coupled_learning_rate(plan, 0.01, "sqrt")
    tx = optax.MultiSteps(
        ab.coupled_adamw(plan, lr, 0.9, 0.99, 1e-2, 0.0), ab.accumulation_schedule(plan, 4)
    )
    params = jnp.asarray(BEGIN, jnp.float32)
    state, update, track = tx.init(params), jax.jit(tx.update), []
    rows = SOURCE.read(ab.example_indices(NUM_EXAMPLES, 0, 0, plan.num_samples))["x"]
    for start in range(0, plan.num_samples, 4):
        updates, state = update(params - rows[start : start + 4].mean(0), state, params)
        params = optax.apply_updates(params, updates)
        if state.mini_step == 0:
            track.append(np.asarray(params))
    expected = reference(plan, 0.01, lambda k: 0.9**k, lambda k: 0.99**k, 1e-2)
    np.testing.assert_allclose(np.array(track), expected, rtol=2e-5, atol=2e-6)


def test_the_average_is_the_same_number_of_samples_old():
    """A constant of the past is halved after as many samples, at every batch size and in tokens."""
    plan = ab.make_plan("8, 800sp: 32, 1600sp: 128", None, "3200sp", tokens_per_example=10)
    for decay in (
        ab.half_life_in_samples(plan, 0.5 ** (1 / 100)),
        ab.half_life_in_samples(plan, "8Ktok"),
    ):
        kept = 1.0
        for step in plan.steps():
            kept *= float(decay(step.index))
            assert kept == pytest.approx(
                0.5 ** ((step.start_sample + step.batch_size) / 800), rel=1e-4
            )
        inside = jax.jit(decay)(jnp.arange(plan.num_steps))
        assert inside.dtype == jnp.float32
        assert inside.tolist() == [float(decay(step)) for step in range(plan.num_steps)]


def test_it_goes_on_from_its_state():
    tx = ab.coupled_adamw(PLAN, RATE)
    state = tx.init({"w": jnp.ones(2)})
    _, state = tx.update({"w": jnp.ones(2)}, state, {"w": jnp.ones(2)})
    saved = jax.tree.unflatten(
        jax.tree.structure(state), [np.asarray(x) for x in jax.tree.leaves(state)]
    )
    later = [tx.update({"w": jnp.full(2, 0.3)}, s, {"w": jnp.ones(2)})[0] for s in (state, saved)]
    assert (later[0]["w"] == later[1]["w"]).all()


@pytest.mark.parametrize(
    ("decay", "message"),
    [
        (1.0, "`decay` must be at least 0 and below 1, got 1.0"),
        (-0.1, "got -0.1"),
        ("100st", "'100st' is counted in steps"),
        ("5Mtok", "'5Mtok' is in tokens"),
        ("5", "no unit"),
        (None, "finite number"),
    ],
)
def test_refused(decay, message):
    with pytest.raises(ab.UsageError, match=message):
        ab.half_life_in_samples(PLAN, decay)


def test_adamw_needs_a_schedule():
    with pytest.raises(ab.UsageError, match="must be a schedule .*got 0.1"):
        ab.coupled_adamw(PLAN, 0.1)
