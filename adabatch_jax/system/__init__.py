"""What any program needs of its machine: errors, files, texts, streams, signals, a watchdog.

Every room may import every file of it. It must know nothing of training, and import no jax.
"""
