"""What a dataset is, where it lies prepared, and how its images and labels look.

`data/` imports it, and commands that look datasets up. It must not know of batches or of jax.
"""
