"""An example that can't be read is named, and after its repair the run goes on exactly."""

import json

import numpy as np
import optax
import pytest

from adabatch_jax.config import Layout
from adabatch_jax.data.sources import array_source, in_memory
from adabatch_jax.runs.fit import fit
from adabatch_jax.schedules.plan import make_plan
from adabatch_jax.training.loss_functions import weighted_mean
from adabatch_jax.training.train_state import TrainState
from adabatch_jax.training.weights_digest import weights_digest

N, BAD = 40, 23
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


class Faulty:
    """A source whose example `BAD` can't be read while `is_broken`, from its n-th time on."""

    def __init__(self, is_broken, good_reads=0):
        self.is_broken, self.good_reads = is_broken, good_reads
        self.table = array_source({"x": X})

    def __len__(self):
        return N

    def read(self, indices):
        if self.is_broken and BAD in indices:
            if self.good_reads == 0:
                raise ValueError("crc32 doesn't match")
            self.good_reads -= 1
        return self.table.read(indices)


def loss_fn(params, model_state, batch, rng):
    errors = (batch["x"] @ params["w"] - 1.0) ** 2
    return weighted_mean(errors, batch["weight"]), (model_state, {})


def train(source, workdir):
    tx = optax.sgd(0.01, momentum=0.9)
    state = TrainState.create(params={"w": np.ones(3, np.float32)}, tx=tx)
    plan = make_plan("6, 2ep: 12", N, "4ep")
    options = dict(
        layout=Layout(None, steps_per_dispatch=1, input="streaming"),
        checkpoint_every="2st",
        log_every="1st",
        workdir=workdir,
    )
    return fit(loss_fn, tx, state, source, plan, seed=1, **options)


def rows(workdir):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if not k.endswith(("_seconds", "_per_second"))}
        for line in lines
    ]


def test_the_run_names_the_example_and_goes_on_after_the_repair(tmp_path):
    oracle = train(Faulty(False), tmp_path / "oracle")
    with pytest.raises(ValueError, match="crc32 doesn't match") as caught:
        train(Faulty(True, good_reads=2), tmp_path / "run")
    assert caught.value.__notes__ == [f"raised while reading example {BAD} of Faulty"]
    num_rows = len(rows(tmp_path / "run"))
    assert 0 < num_rows < oracle.state.step
    resumed = train(Faulty(False), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "oracle")
    assert weights_digest(resumed.state) == weights_digest(oracle.state)


def test_reading_it_all_names_the_example_too():
    with pytest.raises(ValueError) as caught:
        in_memory(Faulty(True), block_size=16)
    assert caught.value.__notes__ == [f"raised while reading example {BAD} of Faulty"]


def test_a_fault_that_has_passed_names_the_examples():
    class Once(Faulty):
        def read(self, indices):
            is_broken, self.is_broken = self.is_broken, False
            return Faulty(is_broken).read(indices)

    with pytest.raises(ValueError) as caught:
        in_memory(Once(True))
    assert caught.value.__notes__ == [f"raised while reading these {N} examples of Once"]
