"""The programs here are read by type checkers, and not run."""

collect_ignore = ["own_training.py", "wrong_training.py"]
