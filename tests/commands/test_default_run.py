"""The default run's accuracy, over the seeds that the README quotes."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.slow
def test_accuracy_over_five_seeds(tmp_path):
    accuracies = []
    for seed in range(5):
        workdir = tmp_path / str(seed)
        command = [sys.executable, "-m", "adabatch_jax.train", "--workdir", str(workdir)]
        subprocess.run([*command, "--seed", str(seed)], check=True, timeout=300)
        accuracies.append(json.loads((workdir / "summary.json").read_text())["test_accuracy"])
        sizes = [p["batch_size"] for p in json.loads((workdir / "plan.json").read_text())["phases"]]
        assert sizes[-1] >= 8 * sizes[0]
    assert np.mean(accuracies) >= 0.97 and min(accuracies) >= 0.96, accuracies
