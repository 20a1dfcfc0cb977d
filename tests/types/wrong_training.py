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
ab.Layout(accumulation="foo")  # wrong
ab.Layout(input="device")  # wrong
ab.Layout(steps_per_dispatch="many")  # wrong
ab.Layout(microbatch_size="32")  # wrong
ab.Layout(shard_params="yes")  # wrong
ab.Operation(on_save_error="ignore")  # wrong
ab.Keep(newest="three")  # wrong
ab.joined("8")  # wrong
ab.piecewise_constant(128, {"20ep": "256"})  # wrong
ab.piecewise_constant(128, [(2.5, 256)])  # wrong
ab.growth_from_decay(128, {"30ep": "x0.1"})  # wrong
ab.make_plan(12.5, 50_000, "2ep")  # wrong
ab.sampled(32, every="1ep")  # wrong
ab.sampled(lambda epoch: 32, every="1ep", unit="epochs")  # wrong
ab.weighted_mean(["a"], [1.0])  # wrong
for batch in ab.batches(ab.array_source({"x": range(3)}), plan, shuffle=True):  # wrong
    pass
step = ab.compile_ahead(jax.jit(lambda batch: batch), plan, exmaple=())  # wrong
result: int = ab.evaluate(lambda *_: {}, None, None, 32)  # wrong
