"""Answers about a plan, or a run that is finished or still runs: tables, pages, plots.

Commands and experiments import it. It gives pages back, and must not write into a run's folder.
"""
