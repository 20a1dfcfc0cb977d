"""Recipes of published runs: their figures as texts of ours, and scaled to other runs.

`published.py` holds the figures, each with its source; none is added that wasn't published.
"""
