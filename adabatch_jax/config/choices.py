"""What may be chosen about how a run is computed and kept; no third-party import."""

AUTO = "auto"
"""Left to the program."""

INPUTS = (AUTO, "resident", "streaming")
"""Where the examples live."""

ACCUMULATIONS = ("fused", "split")
"""How micro-batches are dispatched."""

ON_SAVE_ERROR = ("stop", "warn")
"""What to do where a checkpoint can't be written."""
