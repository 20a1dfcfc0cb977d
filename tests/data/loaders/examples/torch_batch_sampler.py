import torch
from torch.utils.data import DataLoader, TensorDataset

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")
dataset = TensorDataset(torch.arange(30), torch.arange(30) % 3)
step = 0  # of a checkpoint
indices = ab.batch_indices(plan, seed=0, start_sample=plan.samples_at(step))
loader = DataLoader(dataset, batch_sampler=indices, num_workers=2)
seen = [x.numpy() for x, label in loader]  # the whole run, one batch for each update
