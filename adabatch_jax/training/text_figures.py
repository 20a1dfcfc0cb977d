"""What follows from means over tokens, and is no mean itself."""

from collections.abc import Mapping

import numpy as np


def with_text_figures(means: Mapping[str, float]) -> dict[str, float]:
    """Adds perplexity and bits per byte to metrics whose means over all examples are known.

    The mean of batches' perplexities would be another number, and depend on their sizes.

    Args:
      means: metrics by name; only with "bits_per_token" among them, as of the losses of tokens
        here, is anything added, and bits per byte only with "bytes_per_token".

    >>> with_text_figures({"loss": 1.386, "bits_per_token": 2.0, "bytes_per_token": 4.0})
    {'loss': 1.386, 'bits_per_token': 2.0, 'bytes_per_token': 4.0, 'perplexity': 4.0, 'bits_per_byte': 0.5}
    >>> with_text_figures({"loss": 0.1})
    {'loss': 0.1}
    """
    figures = dict(means)
    if "bits_per_token" in means:
        bits = means["bits_per_token"]
        with np.errstate(over="ignore"):
            figures["perplexity"] = float(np.exp2(bits))
        if means.get("bytes_per_token"):
            figures["bits_per_byte"] = bits / means["bytes_per_token"]
    return figures
