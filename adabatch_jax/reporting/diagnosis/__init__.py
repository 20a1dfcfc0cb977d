"""What `python -m adabatch_jax.doctor` looks at; nothing here writes anything."""
