import json

import grain
import numpy as np

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")
dataset = grain.MapDataset.range(30).seed(0).shuffle().repeat().map(lambda i: {"x": np.int64(i)})
loader = dataset.to_iter_dataset().batch(7)  # whatever size reads well
batches = ab.rebatch(loader, plan)
seen = [next(batches)["x"] for _ in range(6)]
saved = json.dumps(batches.get_state())  # beside the checkpoint of the weights

batches = ab.rebatch(loader, plan)
batches.set_state(json.loads(saved))  # grain goes there at once
seen += [batch["x"] for batch in batches]
