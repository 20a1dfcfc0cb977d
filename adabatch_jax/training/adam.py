"""Adam whose averages forget by the sample, so that it is the same when the batch grows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adabatch_jax.schedules.durations import Duration
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from adabatch_jax.schedules.plan import BatchPlan
from adabatch_jax.schedules.step_schedules import half_life_in_samples
from adabatch_jax.system.errors import UsageError

Decay = float | jax.Array | optax.Schedule


class ScaleByAdamState(NamedTuple):
    """Optax's state, and how much of each average is gradients: 1 - the product of its betas."""

    count: jax.Array
    mu: Any
    nu: Any
    mu_weight: jax.Array
    nu_weight: jax.Array


def scale_by_adam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: Decay = 1e-8,
    eps_root: float = 0.0,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, whose betas may change while it runs.

    Both averages begin with 0, and are divided by the weight that gradients have in them by now. After
    t updates that is `1 - b1**t` only where b1 never changed, which optax's assumes; here it is
    `1 - b1[0] * ... * b1[t - 1]`, averaged beside the gradients, whatever they were.

    Args:
      b1: the decay of the average of the gradients: a number, or a schedule of the update count, such
        as `half_life_in_samples`, or what `optax.inject_hyperparams` gives.
      b2: the decay of the average of their squares, likewise.
      eps: added to the root of the squares, likewise.
      eps_root: added below the root.
      mu_dtype: the type of the average of the gradients; None: that of the parameters.

    >>> import adabatch_jax as ab
    >>> plan = ab.make_plan("8, 80sp: 32", num_examples=None, duration="1Ksp")
    >>> tx = optax.chain(
    ...     ab.scale_by_adam(ab.half_life_in_samples(plan, 0.9), ab.half_life_in_samples(plan, 0.999)),
    ...     optax.scale_by_learning_rate(ab.coupled_learning_rate(plan, 1e-3, "sqrt")),
    ... )
    >>> updates, state = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    >>> [round(float(update), 6) for update in updates]
    [-0.001, -0.001]
    """

    def init(params: Any) -> ScaleByAdamState:
        mu, nu = optax.tree.zeros_like(params, dtype=mu_dtype), optax.tree.zeros_like(params)
        count, nothing = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
        return ScaleByAdamState(count, mu, nu, nothing, nothing)

    def update(grads: Any, state: ScaleByAdamState, params: Any = None) -> tuple[Any, Any]:
        now1, now2, now_eps = (x(state.count) if callable(x) else x for x in (b1, b2, eps))
        mu = optax.tree.update_moment(grads, state.mu, now1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, now2, 2)
        # By the same rounded numbers as the moments: of ones, the average is the weight.
        mu_weight = now1 * state.mu_weight + (1 - now1)
        nu_weight = now2 * state.nu_weight + (1 - now2)

        def scaled(m: jax.Array, v: jax.Array) -> jax.Array:
            root = jnp.sqrt(v / nu_weight.astype(v.dtype) + eps_root)
            return m / mu_weight.astype(m.dtype) / (root + now_eps)

        updates = jax.tree.map(scaled, mu, nu)
        mu = optax.tree.cast(mu, mu_dtype)
        nu = optax.tree.cast_like(nu, state.nu)
        count = optax.safe_increment(state.count)
        return updates, ScaleByAdamState(count, mu, nu, mu_weight, nu_weight)

    return optax.GradientTransformation(init, update)


def coupled_adamw(
    plan: BatchPlan,
    learning_rate: optax.Schedule,
    b1: float | str | Duration = 0.9,
    b2: float | str | Duration = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    reference_batch_size: int | None = None,
    first_order: bool = False,
) -> optax.GradientTransformation:
    """AdamW that a growing batch leaves as it is: the square-root rule for all it is made of.

    Beside a rate that goes with the root of the batch (arXiv:2205.10287): betas whose half-lives
    are constant in samples (`half_life_in_samples`), epsilon divided by the root, as the
    gradients' noise is, and weight decay multiplied by it, so that weights are forgotten by the sample
    too (batch / (rate * decay) is constant, arXiv:2505.13738).

    Args:
      plan: which update has which batch size.
      learning_rate: a schedule such as `coupled_learning_rate(plan, base, "sqrt")`.
      b1: the decay of the first average at the reference batch size, or its half-life, such as
        "2Mtok".
      b2: that of the second.
      eps: epsilon at the reference batch size.
      weight_decay: the decay, which the rate multiplies, at the reference batch size.
      mask: which parameters decay, as in `optax.adamw`.
      reference_batch_size: default: the plan's first batch size.
      first_order: as in `half_life_in_samples`, Malladi et al.'s own betas.

    Raises:
      UsageError: `learning_rate` is no schedule; and as `half_life_in_samples`.

    >>> import adabatch_jax as ab
    >>> plan = ab.make_plan("64 x2 every 25% max 256", num_examples=None, duration="1Msp")
    >>> base = ab.parse_learning_rate("3e-4 warmup 100st then cosine")
    >>> lr = ab.coupled_learning_rate(plan, base, "sqrt", optimizer="adam")
    >>> tx = ab.coupled_adamw(plan, lr, b2=0.95, weight_decay=0.1)
    """
    if not callable(learning_rate):
        raise UsageError(
            "`learning_rate` must be a schedule of the update count, such as "
            f"coupled_learning_rate(plan, base, 'sqrt'), got {learning_rate!r}."
        )
    betas = (half_life_in_samples(plan, b, reference_batch_size, first_order) for b in (b1, b2))
    epsilon = coupled_learning_rate(plan, eps, -0.5, reference_batch_size)
    decay = coupled_learning_rate(plan, weight_decay, 0.5, reference_batch_size)
    return optax.chain(
        scale_by_adam(*betas, epsilon),
        optax.add_decayed_weights(decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
