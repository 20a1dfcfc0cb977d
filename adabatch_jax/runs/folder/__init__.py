"""A run's folder: who holds it, what lies in it, and every file that a run writes there.

For others: `run_folder` (and `in_memory`, a run without a folder), `folder_reading` (reads only),
`metrics_files`, `lock`, `workdir_choice`. It knows nothing of the loop, nor of what decides a run's
numbers.
"""
