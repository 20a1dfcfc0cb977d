"""Ten lines for each loader, as they stand in `examples`: the plan's batches, each example once."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from adabatch_jax.data.epoch_order import example_indices
from adabatch_jax.schedules.plan import make_plan

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.py"))
PACKAGES = {"grain": "grain", "torch": "torch", "tf": "tensorflow", "hf": "datasets"}
PLAN = make_plan("4 x2 every 1ep", num_examples=30, duration="3ep")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_each_example_once_an_epoch_in_the_plans_batches(path):
    package = PACKAGES[path.stem.partition("_")[0]]
    pytest.importorskip(package, reason=f"needs the package {package}, which isn't installed")
    seen = runpy.run_path(str(path))["seen"]
    assert [len(ids) for ids in seen] == [step.num_real for step in PLAN.steps()]
    flat = np.concatenate(seen)
    for epoch in flat.reshape(3, 30):
        assert sorted(epoch.tolist()) == list(range(30))
    if "batch_indices" in path.read_text():
        assert flat.tolist() == example_indices(30, 0, 0, 90).tolist()
