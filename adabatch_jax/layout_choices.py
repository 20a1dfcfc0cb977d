"""What may be chosen about a run's layout; no third-party import."""

AUTO = "auto"
"""Left to the program."""

INPUTS = (AUTO, "resident", "streaming")
"""Where the examples live."""

ACCUMULATIONS = ("fused", "split")
"""How micro-batches are dispatched."""
