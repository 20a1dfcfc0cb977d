"""What a dataset is, where it lies prepared, and how its images and labels look.

A dataset of a known kind is an entry of `known_datasets`; a second kind of data gets its own module
beside `labelled_images` and, in `data/`, a source beside `tfds_images`. `data/` imports this room,
and commands that look datasets up. It must not know of batches or of jax.
"""
