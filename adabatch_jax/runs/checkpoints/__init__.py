"""Checkpoints of a run: saved whole or not at all, verified before they are used.

`found` looks at a folder with the standard library alone; `checkpoints` saves and restores with
JAX and Orbax.
"""
