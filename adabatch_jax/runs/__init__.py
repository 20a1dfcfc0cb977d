"""One run: `fit` and its loop, the run's folder, checkpoints, and going on from them.

`fit` and `FitResult` are public; commands and `reporting` take the folder's contents. It knows
nothing of tables and pages that are made of finished runs.
"""
