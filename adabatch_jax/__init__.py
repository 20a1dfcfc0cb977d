"""AdaBatch in JAX."""
