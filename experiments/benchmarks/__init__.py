"""Benchmarks: what the trainer adds to the compiled updates, and how fast those are.

`python -m experiments.benchmarks` measures on the CPU, as ratios of two things that take turns;
`python -m experiments.benchmarks.accelerator` measures on the accelerator at hand.
"""
