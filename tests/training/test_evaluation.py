"""Evaluation covers every example once, whatever the layout."""

import threading

import jax
import numpy as np
import optax
import pytest

from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.system.errors import UsageError
from adabatch_jax.training.evaluation import Evaluator, evaluate
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState


class Numbers:
    """Examples with one feature; remembers which rows were read."""

    def __init__(self, num_examples):
        values = np.random.default_rng(0).normal(3, 1, num_examples)
        self.values = values.astype(np.float32)
        self.rows = []

    def __len__(self):
        return len(self.values)

    def read(self, indices):
        assert indices.dtype == np.int64
        self.rows.append(indices)
        return {"x": self.values[indices]}


def eval_fn(params, model_state, batch):
    prediction = params["w"] * batch["x"] + model_state["b"]
    return {
        "square": weighted_mean(prediction**2, batch["weight"]),
        "large": weighted_mean(prediction > 6, batch["weight"]),
    }


def make_state(w=2.0):
    return TrainState.create(
        params={"w": np.float32(w)}, tx=optax.sgd(1.0), model_state={"b": np.float32(0.5)}
    )


@pytest.mark.parametrize("num_devices", [None, 1, 3, 4])
@pytest.mark.parametrize("batch_size", [7, 32, 1000])
def test_exact_for_every_layout(num_devices, batch_size):
    source = Numbers(101)
    prediction = 2 * source.values.astype(np.float64) + 0.5
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    metrics = evaluate(eval_fn, make_state(), source, batch_size, mesh)
    assert all(type(value) is float for value in metrics.values())
    assert metrics["square"] == pytest.approx((prediction**2).mean(), rel=1e-6)
    assert metrics["large"] == pytest.approx((prediction > 6).mean(), rel=1e-7)


def test_the_last_batch_is_padded_for_the_devices_only():
    source, seen = Numbers(11), []

    def spy(params, model_state, batch):
        jax.debug.callback(lambda **arrays: seen.append(arrays), **batch)
        return eval_fn(params, model_state, batch)

    evaluate(spy, make_state(), source, batch_size=4)
    jax.effects_barrier()
    # One example tells the arrays' shapes; padding is what was read already.
    assert [rows.tolist() for rows in source.rows] == [[0], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert seen[-1]["weight"].tolist() == [1, 1, 1]
    source.rows.clear()
    evaluate(spy, make_state(), source, 4, data_mesh(jax.devices()[:2]))
    jax.effects_barrier()
    assert source.rows[-1].tolist() == [8, 9, 10]
    assert seen[-1]["weight"].tolist() == [1, 1, 1, 0]
    assert seen[-1]["index"].tolist() == [8, 9, 10, 8]
    assert seen[-1]["epoch"].tolist() == [0, 0, 0, 0]
    dtypes = {name: str(array.dtype) for name, array in seen[-1].items()}
    assert dtypes == {"x": "float32", "index": "int32", "epoch": "int32", "weight": "float32"}


def test_a_small_source_gets_small_batches():
    seen = []

    def spy(params, model_state, batch):
        seen.append(batch["weight"].shape)
        return eval_fn(params, model_state, batch)

    evaluate(spy, make_state(), Numbers(5), 512, data_mesh(jax.devices()[:4]))
    assert set(seen) == {(8,)}


@pytest.mark.parametrize("num_devices", [None, 4])
def test_traced_once_over_calls(num_devices):
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    traces = []

    def counting(params, model_state, batch):
        traces.append(1)
        return eval_fn(params, model_state, batch)

    evaluator = Evaluator(counting, Numbers(10), 4, mesh)
    assert evaluator(make_state(1.0)) != evaluator(make_state(2.0))
    evaluate(counting, make_state(), Numbers(10), 4, mesh)
    # The last batch has a shape of its own on one device, and is tried with padding on four.
    assert len(traces) == 2


@pytest.mark.parametrize("num_devices", [None, 4])
def test_what_is_kept_is_neither_read_nor_sent_again(num_devices):
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    source = Numbers(101)
    with Evaluator(eval_fn, source, 8, mesh) as evaluator:
        first, num_reads = evaluator(make_state(1.0)), len(source.rows)
        assert num_reads == 1 + 13
        # 12 batches of 8 rows, and 5 that 4 devices make 8: the number, index, epoch and weight.
        num_rows = 101 if num_devices is None else 13 * 8
        assert evaluator.num_bytes == num_rows * 16 // (num_devices or 1)
        states = [make_state(2.0), make_state(1.0)]
        jax.config.update("jax_transfer_guard_host_to_device", "disallow")  # of all threads
        try:
            again = [evaluator(state) for state in states]
        finally:
            jax.config.update("jax_transfer_guard_host_to_device", "allow")
        assert len(source.rows) == num_reads
    assert again == [evaluate(eval_fn, make_state(w), Numbers(101), 8, mesh) for w in (2.0, 1.0)]
    assert again[1] == first != again[0]


def test_what_does_not_fit_is_read_each_time():
    source = Numbers(10)
    for limit, num_bytes, reads in ((160, 160, [1, 4, 4, 2]), (159, 0, [1, 4, 4, 2, 4, 4, 2])):
        source.rows.clear()
        with Evaluator(eval_fn, source, 4, keep_limit_bytes=limit) as evaluator:
            assert evaluator.num_bytes == num_bytes
            assert evaluator(make_state()) == evaluator(make_state())
        assert [len(rows) for rows in source.rows] == reads


@pytest.mark.parametrize("num_devices", [None, 4])
def test_compiled_ahead(num_devices, compilations):
    mesh = None if num_devices is None else data_mesh(jax.devices()[:num_devices])
    state = make_state()
    with Evaluator(eval_fn, Numbers(10), 4, mesh) as evaluator:
        abstract = jax.eval_shape(lambda: state)
        for num_rows in evaluator.programs:
            evaluator.programs[num_rows] = evaluator.lower(abstract, num_rows).compile()
        evaluator(state)  # tries it with padding, where there is any
        before = len(compilations)
        metrics = evaluator(state)
        assert len(compilations) == before
    assert metrics == evaluate(eval_fn, state, Numbers(10), 4, mesh)


def test_a_broken_source_is_told_and_not_kept():
    class Broken(Numbers):
        def read(self, indices):
            if len(self.rows) == 3:
                self.rows.clear()
                raise OSError("the disk is gone")
            return super().read(indices)

    source = Broken(10)
    with Evaluator(eval_fn, source, 4) as evaluator:
        with pytest.raises(OSError, match="the disk is gone"):
            evaluator(make_state())
        source.rows.clear()
        assert evaluator(make_state()) == evaluate(eval_fn, make_state(), Numbers(10), 4)
    assert not [t for t in threading.enumerate() if t.name.startswith("evaluation")]


@pytest.mark.parametrize("keep_limit_bytes", [0, 2**30])
def test_stopped_between_batches(keep_limit_bytes):
    done = []
    with Evaluator(eval_fn, Numbers(10), 4, keep_limit_bytes=keep_limit_bytes) as evaluator:
        whole = evaluate(eval_fn, make_state(), Numbers(10), 4)
        for _ in range(2):  # what one evaluation began the next one doesn't take for the whole
            for num_batches in (1, 2):
                done.clear()
                stop = lambda: len(done) >= num_batches  # noqa: B023, E731
                assert evaluator(make_state(), stop, lambda: done.append(1)) is None
                assert len(done) == num_batches
            done.clear()
            # Asked behind the last batch, there is nothing left to stop.
            assert evaluator(make_state(), lambda: len(done) >= 3, lambda: done.append(1)) == whole
            assert evaluator(make_state()) == whole


def test_stopped_while_the_source_hangs(monkeypatch):
    monkeypatch.setattr("adabatch_jax.data.prefetching._CLOSE_SECONDS", 0.01)
    gate, asked = threading.Event(), []

    class Hangs(Numbers):
        def read(self, indices):
            return super().read(indices) if len(self.rows) < 2 else gate.wait()

    def should_stop():
        asked.append(1)
        return len(asked) > 3

    with Evaluator(eval_fn, Hangs(10), 4) as evaluator:
        assert evaluator(make_state(), should_stop) is None
    gate.set()


def test_errors():
    with pytest.raises(UsageError, match="batch_size .* 0"):
        evaluate(eval_fn, make_state(), Numbers(3), 0)
    with pytest.raises(UsageError, match="source has no examples"):
        evaluate(eval_fn, make_state(), Numbers(0), 4)
