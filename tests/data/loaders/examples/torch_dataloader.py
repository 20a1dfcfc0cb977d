import torch
from torch.utils.data import DataLoader, TensorDataset

import adabatch_jax as ab

plan = ab.make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")
dataset = TensorDataset(torch.arange(30), torch.arange(30) % 3)


def loader(epoch):  # each epoch has an order of its own, and a restart begins with its epoch's
    order = torch.Generator().manual_seed(epoch)
    return DataLoader(dataset, batch_size=7, shuffle=True, generator=order, num_workers=2)


seen = [x for x, label in ab.rebatch(loader, plan, start_step=0)]
