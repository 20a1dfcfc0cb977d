"""Batch size and learning rate over the one clock, samples: schedules, their texts, and the plan.

A plan (`plan.py`) is what the rooms above import: they read each batch size and rate from it and
compute none. Devices, data and files are unknown here; jax is there only for what is a function of
an update's traced count.
"""
