"""The official code's networks for CIFAR in PyTorch, and torchvision's for ImageNet."""

import itertools

import torch
import torchvision
from torch import nn

from experiments.benchmarks import torch_networks


def create(name: str, num_classes: int) -> nn.Module:
    """Returns the PyTorch original of one of our networks."""
    if name.endswith("_cifar"):
        return torch_networks.create(name, num_classes)
    return getattr(torchvision.models, name)(num_classes=num_classes)


def without_dropout(network: nn.Module) -> nn.Module:
    """Returns the network with dropout switched off in training mode too."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def float_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and running statistics by name, without the integer counters."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}
