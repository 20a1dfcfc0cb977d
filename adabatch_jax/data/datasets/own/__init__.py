"""What a user's own files hold: images in folders by class, arrays, tables of paths or of images.

`records_of` opens what a path names; `Records` are encoded images with labels, `Arrays` decoded
ones. Preparing imports this room too: it must not know of sources, batches or jax.
"""
