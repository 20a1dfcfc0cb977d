from datasets import Dataset

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")
dataset = Dataset.from_dict({"x": list(range(30))}).with_format("numpy")
loader = dataset.to_iterable_dataset(num_shards=3)  # as load_dataset(..., streaming=True) gives it
batches = ab.rebatch(loader, plan, batched=False)
seen = [next(batches)["x"] for _ in range(6)]
saved = batches.get_state()

batches = ab.rebatch(loader, plan, batched=False)
batches.set_state(saved)
seen += [batch["x"] for batch in batches]
