"""Checkpoints of a run: saved whole or not at all in the background, verified before they are used.

`checkpoints.Checkpoints` is for a run under way; `restoring` reads one that is there; `verifying`
looks at a folder with the standard library alone. What else lies in a run's folder, and which run
it is, isn't known here.
"""
