"""Writes the fixtures that the tests compare with: what PyTorch computes, in float64.

Run by hand, from the root of the repository, in an environment of its own:

    pip install torch torchvision numpy
    python -m tests.models.torch.make_reference
"""

import json
from pathlib import Path

import numpy as np
import torch

from tests.models.torch import draws, networks

FIXTURES = Path(__file__).parent / "fixtures"

# Name: (rows, image size, classes, whether to train it).
REFERENCES = {
    "alexnet_cifar": (4, 32, 10, True),
    "vgg11_cifar": (4, 32, 10, True),
    "vgg19_bn_cifar": (4, 32, 10, True),
    "resnet20_cifar": (4, 32, 10, True),
    "resnet44_cifar": (4, 32, 10, True),
    "alexnet": (2, 224, 20, False),
    "resnet50": (2, 224, 20, False),
    "vgg19_bn": (2, 224, 20, False),
}


def reference(name: str, num_rows: int, size: int, num_classes: int, train: bool) -> dict:
    """Computes what one network's fixture holds, see `test_parity.py`."""
    network = networks.without_dropout(networks.create(name, num_classes)).double()
    shapes = {name: tuple(tensor.shape) for name, tensor in networks.float_state(network).items()}
    drawn = {name: torch.from_numpy(a) for name, a in draws.weights(shapes).items()}
    network.load_state_dict(drawn, strict=False)
    batches = [
        tuple(map(torch.from_numpy, draws.batch(step, num_rows, size, num_classes)))
        for step in range(draws.NUM_STEPS)
    ]
    images = batches[0][0].double()
    values = {"shapes": json.dumps(shapes), "num_rows": num_rows, "size": size}
    with torch.no_grad():
        values["eval_logits"] = network.eval()(images).numpy()
        values["train_logits"] = network.train()(images).numpy()
    values["statistics"] = draws.summary(_statistics(network))
    if train:
        network.load_state_dict(drawn, strict=False)
        values |= _train(network, batches, drawn)
    return values


def _statistics(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Copies: training changes the buffers in place."""
    state = networks.float_state(network)
    return {name: t.numpy().copy() for name, t in state.items() if "running_" in name}


def _train(network: torch.nn.Module, batches: list, start: dict) -> dict[str, np.ndarray]:
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=draws.LEARNING_RATE,
        momentum=draws.MOMENTUM,
        weight_decay=draws.WEIGHT_DECAY,
    )
    values, losses = {}, []
    for step, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(images.double()), labels)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            grads = {name: p.grad.numpy() for name, p in network.named_parameters()}
            values["gradients"] = draws.summary(grads)
        optimizer.step()
    change = {
        name: (tensor - start[name]).numpy()
        for name, tensor in networks.float_state(network).items()
    }
    return {**values, "losses": np.array(losses), "change": draws.summary(change)}


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    for name, arguments in REFERENCES.items():
        values = reference(name, *arguments)
        np.savez_compressed(FIXTURES / f"{name}.npz", **values)
        print(f"{name}: {(FIXTURES / f'{name}.npz').stat().st_size:,} bytes")
