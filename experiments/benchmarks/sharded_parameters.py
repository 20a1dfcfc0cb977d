"""Memory of parameters and optimizer state where eight devices share them."""

import jax

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.training.train_step import make_train_step
from experiments.benchmarks.networks import Network, optimizer
from experiments.benchmarks.options import Options
from experiments.benchmarks.rows import Row, Target
from experiments.benchmarks.timing import spread

_NETWORKS = {
    "ResNet-20": "resnet20_cifar",
    "AlexNet": "alexnet_cifar",
    "VGG19_BN": "vgg19_bn_cifar",
}


def run(options: Options) -> list[Row]:
    """Counts the bytes that the fullest device holds; eight devices are expected."""
    networks = dict(list(_NETWORKS.items())[: 1 if options.quick else None])
    return [_row(title, name) for title, name in networks.items()]


def _row(title: str, name: str) -> Row:
    network, tx, mesh = Network.create(name), optimizer(), data_mesh()
    step = make_train_step(network.loss_fn, tx, mesh, shard_params=True)
    state = step.place(network.state(tx))
    arrays = jax.tree.leaves((state.params, state.opt_state))
    held = dict.fromkeys(mesh.devices.flat, 0)
    for array in arrays:
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(array.nbytes for array in arrays)
    return Row(
        f"FSDP: parameter and optimizer bytes per device on {mesh.size} devices / one device's, "
        f"{title}",
        spread([max(held.values()) / whole]),
        Target(at_most=0.15),
        beside={"whole (MiB)": whole / 2**20, "per device (MiB)": max(held.values()) / 2**20},
    )
