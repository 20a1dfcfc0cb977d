"""How a batch lies on meshes of any axes: which device, and which process, holds which rows."""

import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adabatch_jax.data.batches import batch_rows, batches, examples_of
from adabatch_jax.data.mesh import BatchMesh, as_batch_mesh, data_mesh, shard_numbers
from adabatch_jax.data.row_layout import Layouts
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.phases import Step
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.system.errors import UsageError

N = 103
TOKENS = np.arange(N * 8).reshape(N, 8).astype(np.int32)
SOURCE = array_source({"tokens": TOKENS, "label": np.arange(N, dtype=np.int32)})
PLAN = make_plan("6, 40sp: 10, 80sp: 25", N, "2ep")


def mesh_of(shape, names):
    return Mesh(np.array(jax.devices()).reshape(shape), names)


MESH = mesh_of((4, 2), ("data", "other"))


@pytest.mark.parametrize(
    ("mesh", "spec", "microbatch_size"),
    [
        (MESH, P("data"), None),
        (MESH, P("data"), 5),
        (mesh_of((2, 4), ("data", "seq")), P("data", "seq"), None),
        (mesh_of((2, 4), ("seq", "data")), P("data", "seq"), 7),
        (mesh_of((2, 2, 2), ("a", "model", "b")), P(("b", "a")), 3),
        (MESH, P(None, "other"), 4),
    ],
)
def test_each_shard_holds_its_rows_of_the_batch(mesh, spec, microbatch_size):
    """The shards' contents follow from the contract: micro-batch k, padded, cut along the axes."""
    entry = spec[0] or ()
    axes = (entry,) if isinstance(entry, str) else entry
    num_shards = int(np.prod([mesh.shape[axis] for axis in axes]))
    got = list(batches(SOURCE, PLAN, 3, 0, None, microbatch_size, NamedSharding(mesh, spec)))
    plain = list(batches(SOURCE, PLAN, 3))
    for batch, rows in zip(got, plain, strict=True):
        weight = np.asarray(batch["weight"])
        assert weight.shape[-1] % num_shards == 0 and weight.shape[-1] - num_shards < 25
        real = np.asarray(batch["index"]).ravel()[weight.ravel() > 0]
        np.testing.assert_array_equal(real, rows["index"][rows["weight"] > 0])
        stacked = weight.ndim - 1
        np.testing.assert_array_equal(batch["tokens"], TOKENS[np.asarray(batch["index"])])
        for name, array in batch.items():
            for shard in array.addressable_shards:
                place = [int(i[0]) for i in np.nonzero(mesh.devices == shard.device)]
                at = dict(zip(mesh.axis_names, place, strict=True))
                expected = np.asarray(array)
                number = 0
                for axis in axes:
                    number = number * mesh.shape[axis] + at[axis]
                expected = np.split(expected, num_shards, axis=stacked)[number]
                if name == "tokens" and len(spec) == 2:
                    parts = np.split(expected, mesh.shape[spec[1]], axis=stacked + 1)
                    expected = parts[at[spec[1]]]
                np.testing.assert_array_equal(shard.data, expected)


def test_hosts_read_what_their_devices_hold():
    """Hosts that stand beside each other along another axis read the same rows."""
    hosts = np.array([[0, 0], [1, 1], [2, 3], [2, 3]])  # of the devices of a 4 x 2 mesh
    devices = np.vectorize(lambda h: SimpleNamespace(process_index=h), otypes=[object])(hosts)
    stand_in = SimpleNamespace(
        devices=devices, axis_names=("data", "model"), shape={"data": 4, "model": 2}
    )
    layout, step = Layouts(6, num_devices=4).of(10), Step(0, 0, 0, 10, 10)
    examples = examples_of(None, 0, [step])
    whole = batch_rows(examples, [step], layout, as_batch_mesh(NamedSharding(MESH, P("data"))))
    parts = np.split(whole.index, 4, axis=-1)
    for host, held in enumerate([(0,), (1,), (2, 3), (2, 3)]):
        mesh = BatchMesh(stand_in, P("data"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_index", lambda host=host: host)
            assert mesh.own_shards == held
        rows = batch_rows(examples, [step], layout, mesh)
        expected = np.concatenate([parts[shard] for shard in held], axis=-1)
        np.testing.assert_array_equal(rows.index, expected)


def test_shards_are_numbered_as_jax_does():
    mesh = mesh_of((2, 2, 2), ("a", "b", "c"))
    for axes in [("a",), ("c",), ("a", "c"), ("c", "a"), ("b", "c", "a"), ()]:
        numbers = shard_numbers(mesh, axes)
        size = 2 ** len(axes)
        for device, (rows,) in NamedSharding(mesh, P(axes)).devices_indices_map((size,)).items():
            assert numbers[mesh.devices == device] == (rows.start or 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"mesh": MESH}, r"^`mesh` has the axes \('data', 'other'\).*PartitionSpec\('data'\)"),
        ({"mesh": mesh_of((8, 1), ("data", "model"))}, "^`mesh` has the axes"),
        ({"mesh": "data"}, "^`mesh` must be of type Mesh or NamedSharding, got one of type str"),
        ({"sharding": MESH}, "^`sharding` must be of type NamedSharding, got one of type Mesh"),
        (
            {"mesh": data_mesh(), "sharding": NamedSharding(MESH, P("data"))},
            "^`mesh` and `sharding` say different things",
        ),
        (
            {"sharding": NamedSharding(MESH, P(P.UNCONSTRAINED))},
            "^`sharding` leaves open how a batch lies",
        ),
        (
            {"sharding": NamedSharding(data_mesh(jax.devices()[:3]), P(None, "data"))},
            r"^batch\['tokens'\] has 8 entries along dimension 1, which 'data' .* 3 parts",
        ),
    ],
)  # fmt: skip
def test_what_does_not_say_how_a_batch_lies_is_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        next(batches(SOURCE, PLAN, **arguments))


def test_a_sharding_may_come_with_its_own_mesh():
    sharding = NamedSharding(MESH, P("data"))
    ways = [{"mesh": sharding}, {"sharding": sharding}, {"mesh": MESH, "sharding": sharding}]
    for arguments in ways:
        assert next(batches(SOURCE, PLAN, **arguments))["label"].sharding == sharding


def test_axes_may_have_any_name_and_type():
    mesh = jax.make_mesh((8,), ("x",))  # Explicit
    batch = next(batches(SOURCE, PLAN, mesh=mesh))
    assert batch["label"].sharding.spec == P("x")


TWO_PROCESSES = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
import numpy as np, optax, adabatch_jax as ab
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
source, plan = ab.array_source({"x": x}), ab.make_plan("10, 20sp: 14", 60, "1ep")
def loss_fn(params, model_state, batch, rng):
    errors = (batch["x"] @ params["w"] @ params["v"])[:, 0] - 1
    return ab.weighted_mean(errors**2, batch["weight"]), (model_state, {})
tx, weights = optax.sgd(0.1), {"w": np.full((4, 8), 0.1, np.float32), "v": np.ones((8, 1), np.float32)}
def trained(params, mesh, laid_out):
    state = ab.TrainState.create(params=params, tx=tx)
    step = ab.make_train_step(loss_fn, tx, mesh)
    for batch in laid_out:
        state, _ = step(state, batch, jax.random.key(0))
    return state
alone = jax.device_get(trained(weights, None, ab.batches(source, plan)).params["w"])
# The model's axis runs over the processes: both hold all rows. Then each holds every other shard.
for devices in (np.array(jax.devices()).reshape(2, 4).T, np.array(jax.devices()).reshape(2, 2, 2).swapaxes(0, 1).reshape(4, 2)):
    mesh = Mesh(devices, ("data", "model"))
    put = lambda a, spec: jax.make_array_from_callback(a.shape, NamedSharding(mesh, spec), lambda i: a[i])
    params = {"w": put(weights["w"], P(None, "model")), "v": put(weights["v"], P("model"))}
    sharding = NamedSharding(mesh, P("data"))
    state = trained(params, sharding, ab.batches(source, plan, sharding=sharding))
    for shard in state.params["w"].addressable_shards:
        assert shard.data.shape == (4, 4)
        np.testing.assert_allclose(shard.data, alone[shard.index], rtol=1e-5, atol=1e-6)
    state = ab.fit(
        loss_fn, tx, ab.TrainState.create(params=params, tx=tx), source, plan, mesh=sharding
    ).state
    for shard in state.params["w"].addressable_shards:
        assert shard.data.shape == (4, 4)
        np.testing.assert_allclose(shard.data, alone[shard.index], rtol=1e-5, atol=1e-6)
print("done")
"""


def test_two_processes():
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", TWO_PROCESSES, str(port)]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen([*command, str(rank)], **outputs) for rank in range(2)]
    for process in both:
        try:
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
        assert said.endswith("done\n"), said
