"""What an error names, apart from its wording, which may change."""

import re


def says(pieces):
    """A pattern for "setting … value": these pieces in this order, with anything between."""
    return ".*".join(map(re.escape, pieces.split(" … ")))
