"""Benchmarks of the accelerator at hand, in one command and some minutes."""
