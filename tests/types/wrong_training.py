"""A user's file with mistakes; each line that says so must be refused, and no other one."""

import jax
import optax

import adabatch_jax as ab

ab.no_such_name  # wrong
ab.make_paln("128", num_examples=50_000, duration="2ep")  # wrong
ab.models.no_such_name  # wrong
plan = ab.make_plan("128", num_examples=50_000, duration="2ep")
ab.make_plan("128", num_exmaples=50_000, duration="2ep")  # wrong
plan.num_step  # wrong
plan.batch_size_at("3")  # wrong
ab.coupled_learning_rate(plan, optax.constant_schedule(0.1), counts="updates")  # wrong
ab.coupled_learning_rate(plan, 0.1, coupling="square")  # wrong
ab.make_plan("128", 50_000, "2ep", remainder="kept")  # wrong
ab.Layout(microbatch=32)  # wrong
ab.Keep(newest="three")  # wrong
for batch in ab.batches(ab.array_source({"x": range(3)}), plan, shuffle=True):  # wrong
    pass
step = ab.compile_ahead(jax.jit(lambda batch: batch), plan, exmaple=())  # wrong
result: int = ab.evaluate(lambda *_: {}, None, None, 32)  # wrong
