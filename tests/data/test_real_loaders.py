"""grain, torch, torchdata, TensorFlow and Hugging Face: their rows, in their order, from anywhere."""

import copy
import json
import warnings

import numpy as np
import pytest

from adabatch_jax.data.batch_indices import batch_indices
from adabatch_jax.data.batches import batches
from adabatch_jax.data.rebatching import rebatch
from adabatch_jax.data.sources import array_source
from adabatch_jax.schedules.plan import make_plan

N = 30
PLAN = make_plan("4, 13sp: 7, 1.5ep: 2, 2ep: 11", num_examples=N, duration="3ep")
SQUARES = np.arange(N) ** 2
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*")


def package(name):
    return pytest.importorskip(name, reason=f"needs the package {name}, which isn't installed")


def grain_map():
    grain = package("grain")
    return grain.MapDataset.range(N).seed(3).shuffle().map(lambda i: {"id": i}).batch(7)


def grain_repeated():
    grain = package("grain")
    rows = grain.MapDataset.range(N).seed(3).shuffle().repeat().map(lambda i: {"id": i})
    return rows.to_iter_dataset().batch(5)


def grain_shuffled_window():
    grain = package("grain")
    rows = grain.MapDataset.range(N).map(lambda i: {"id": i}).to_iter_dataset()
    return grain.experimental.WindowShuffleIterDataset(rows, window_size=8, seed=1).batch(4)


def grain_data_loader():
    grain = package("grain")

    class AsRow(grain.transforms.Map):
        def map(self, element):
            return {"id": np.int64(element)}

    sampler = grain.samplers.IndexSampler(N, num_epochs=3, shuffle=True, seed=2)
    return grain.DataLoader(
        data_source=grain.sources.RangeDataSource(0, N, 1),
        sampler=sampler,
        operations=[AsRow(), grain.transforms.Batch(6)],
    )


def torchdata_loader():
    loaders = package("torchdata.stateful_dataloader")
    dataset = [{"id": np.int64(i)} for i in range(N)]
    return loaders.StatefulDataLoader(dataset, batch_size=7)


def hf_stream():
    datasets = package("datasets")
    rows = datasets.Dataset.from_dict({"id": list(range(N))}).with_format("numpy")
    return rows.to_iterable_dataset(num_shards=3).batch(4)


def hf_stream_in_another_order_each_epoch():
    datasets = package("datasets")
    rows = datasets.Dataset.from_dict({"id": list(range(N))}).to_iterable_dataset(num_shards=5)
    return rows.shuffle(seed=1, buffer_size=1).with_format("numpy").batch(3)


POSITIONED = [
    grain_map,
    grain_repeated,
    grain_shuffled_window,
    grain_data_loader,
    torchdata_loader,
    hf_stream,
    hf_stream_in_another_order_each_epoch,
]


def torch_loader(num_workers=0):
    torch = package("torch")
    data = torch.utils.data.TensorDataset(torch.arange(N), torch.from_numpy(SQUARES))
    order = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(
        data,
        batch_size=7,
        shuffle=True,
        generator=order,
        num_workers=num_workers,
        collate_fn=lambda rows: {"id": torch.stack([row[0] for row in rows])},
    )


def torch_loader_of_epoch():
    package("torch")

    def loader(epoch):
        of_epoch = torch_loader()
        of_epoch.generator.manual_seed(epoch)
        return of_epoch

    return loader


def tensorflow_data():
    tf = package("tensorflow")
    rows = tf.data.Dataset.range(N).map(lambda i: {"id": i})
    return rows.shuffle(N, seed=1, reshuffle_each_iteration=True).batch(7)


READ_AGAIN = [torch_loader, torch_loader_of_epoch, tensorflow_data]


def own_ids(loader):
    """What the loader gives by itself, pass after pass."""
    ids, epoch = [], 0
    while len(ids) < PLAN.num_samples:
        rows = loader(epoch) if callable(loader) else loader
        if hasattr(rows, "set_epoch"):
            rows.set_epoch(epoch)
        for item in rows:
            ids += np.asarray(item["id"]).tolist()
            if len(ids) >= PLAN.num_samples:
                break
        epoch += 1
    return ids


@pytest.mark.parametrize("make", POSITIONED + READ_AGAIN)
def test_rows_come_in_the_loaders_order_from_any_position(make):
    whole = own_ids(make())
    for epoch in np.array(whole).reshape(3, N):
        assert sorted(epoch.tolist()) == list(range(N))
    wanted = [whole[s.start_sample : s.start_sample + s.num_real] for s in PLAN.steps()]
    batches, states = rebatch(make(), PLAN, prefetch=4), []
    for ids in wanted:
        states.append(copy.deepcopy(batches.get_state()))
        assert next(batches)["id"].tolist() == ids
    assert [*batches] == []
    with warnings.catch_warnings():
        # Told, or not where nothing is dropped.
        warnings.filterwarnings(
            "ignore" if make in READ_AGAIN else "error", message=".* are read and dropped"
        )
        for step, state in enumerate(states):
            again = rebatch(make(), PLAN, prefetch=(0, 1, 4)[step % 3])
            again.set_state(state)
            assert [batch["id"].tolist() for batch in again] == wanted[step:]


@pytest.mark.parametrize("make", [grain_map, grain_repeated, hf_stream])
def test_their_states_are_json(make):
    batches = rebatch(make(), PLAN)
    next(batches)
    state = batches.get_state()
    assert json.loads(json.dumps(state)) == state and state["loader"] is not None


def test_torch_workers_are_gone_with_the_batches():
    package("torch")
    import multiprocessing

    batches = rebatch(torch_loader(num_workers=2), PLAN)
    wanted = own_ids(torch_loader())
    assert next(batches)["id"].tolist() == wanted[:4]
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert multiprocessing.active_children() == []


def test_torch_workers_take_lists_of_indices():
    torch = package("torch")
    data = torch.utils.data.TensorDataset(torch.arange(N), torch.from_numpy(SQUARES))
    source = array_source({"square": SQUARES})
    for step in (0, 1, PLAN.phases[1].start_step - 1, PLAN.phases[2].start_step + 1):
        start = PLAN.samples_at(step)
        indices = batch_indices(PLAN, seed=5, start_sample=start)
        loader = torch.utils.data.DataLoader(data, batch_sampler=indices, num_workers=2)
        assert len(loader) == PLAN.num_steps - step
        ours = batches(source, PLAN, seed=5, start_sample=start)
        for (index, square), batch in zip(loader, ours, strict=True):
            is_real = batch["weight"] > 0
            np.testing.assert_array_equal(index, batch["index"][is_real])
            np.testing.assert_array_equal(square, batch["square"][is_real])


def test_tensors_become_arrays():
    torch = package("torch")
    items = [{"b": torch.full((2, 3), 1.5, dtype=torch.bfloat16), "x": [torch.arange(2)]}]
    (batch,) = rebatch(items, make_plan("2", 2, "1ep"))
    assert batch["b"].dtype.name == "bfloat16" and (batch["b"] == 1.5).all()
    assert batch["x"][0].tolist() == [0, 1] and type(batch["x"][0]) is np.ndarray
    learned = [{"x": torch.ones(2, requires_grad=True)}]
    with pytest.raises(ValueError, match=r"\['x'\] can't be read: .*requires grad"):
        next(rebatch(learned, make_plan("2", 2, "1ep")))


def test_texts_of_tensorflow_are_bytes():
    tf = package("tensorflow")
    rows = tf.data.Dataset.from_tensor_slices({"t": [b"a\0", b"bcd", b""]}).batch(2)
    (batch,) = rebatch(rows, make_plan("3", 3, "1ep"))
    assert batch["t"].tolist() == [b"a\0", b"bcd", b""]
    ragged = [{"t": tf.ragged.constant([[1], [2, 3]])}]
    with pytest.raises(ValueError, match=r"\['t'\] can't be read: it .* RaggedTensor"):
        next(rebatch(ragged, make_plan("2", 2, "1ep")))
