"""What a plan would cost before it runs: its table, time, memory, a micro-batch, a suggestion.

`python -m adabatch_jax.plan` imports it. It times single updates, and must not train or write.
"""
