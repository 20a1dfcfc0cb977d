"""How a run shows where it is: a live display, plain lines, or nothing.

A run imports `Progress` and whoever starts it `make_progress`. It sees a plan and rows of metrics,
and must not know of the loop or of a run's folder.
"""
