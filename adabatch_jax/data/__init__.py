"""From a position in the plan to a batch on the devices: orders, rows, sources, feeds.

`batches`, the sources, `data_mesh` and `host_rows` are public; rooms above take `Feed`, `Layouts`
and the shardings. It knows nothing of losses, networks or runs.
"""
