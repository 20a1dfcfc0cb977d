from datasets import Dataset

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")
dataset = Dataset.from_dict({"x": list(range(30))}).with_format("numpy")
step = 0  # of a checkpoint
indices = ab.batch_indices(plan, seed=0, start_sample=plan.samples_at(step))
seen = [dataset[examples]["x"] for examples in indices]
