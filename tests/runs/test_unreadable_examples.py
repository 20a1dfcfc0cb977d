"""An example that can't be read is named, and after its repair the run goes on exactly."""

import json

import pytest

from adabatch_jax.config import Layout
from adabatch_jax.data.sources import in_memory
from adabatch_jax.schedules.plan import make_plan
from tests.runs import small_run
from tests.runs.small_run import TRAIN, N, reproducible

BAD = 23


class Faulty:
    """A source whose example `BAD` can't be read while `is_broken`, from its n-th time on."""

    def __init__(self, is_broken, good_reads=0):
        self.is_broken, self.good_reads = is_broken, good_reads

    def __len__(self):
        return N

    def read(self, indices):
        if self.is_broken and BAD in indices:
            if self.good_reads == 0:
                raise ValueError("crc32 doesn't match")
            self.good_reads -= 1
        return TRAIN.read(indices)


def train(source, workdir):
    return small_run.train(
        make_plan("6, 2ep: 12", N, "4ep"), workdir, source=source,
        layout=Layout(None, steps_per_dispatch=1, input="streaming"),
        checkpoint_every="2st", log_every="1st",
    )  # fmt: skip


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return reproducible(json.loads(line) for line in lines)


def test_the_run_names_the_example_and_goes_on_after_the_repair(tmp_path):
    oracle = train(Faulty(False), tmp_path / "oracle")
    with pytest.raises(ValueError, match="crc32 doesn't match") as caught:
        train(Faulty(True, good_reads=2), tmp_path / "run")
    assert caught.value.__notes__ == [f"raised while reading example {BAD} of Faulty"]
    num_rows = len(rows(tmp_path / "run"))
    assert 0 < num_rows < oracle.state.step
    resumed = train(Faulty(False), tmp_path / "run")
    assert rows(tmp_path / "run") == rows(tmp_path / "oracle")
    assert resumed.summary["weights_digest"] == oracle.summary["weights_digest"]


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
