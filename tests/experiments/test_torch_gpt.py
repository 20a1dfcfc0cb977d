"""nanoGPT's training step in PyTorch against ours, from the same weights.

    pip install torch

It isn't among the packages of the tests: without it these are left out.
"""

import numpy as np
import pytest

from adabatch_jax import models
from experiments.benchmarks.networks import Network

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")

from experiments.benchmarks import torch_gpt  # noqa: E402

SHAPE = {"width": 48, "num_layers": 3, "num_heads": 4}
VOCABULARY, LENGTH = 101, 24


def test_losses_of_updates_from_the_same_weights_are_ours():
    ours = Network.of_tokens("gpt_124m", LENGTH, VOCABULARY, num_positions=LENGTH, **SHAPE)
    theirs = torch_gpt.GPT(VOCABULARY, LENGTH, **SHAPE)
    weights = {name: torch.from_numpy(a) for name, a in models.to_torch_arrays(ours.module).items()}
    for name in weights:
        if name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight")):
            weights[name] = weights[name].T  # GPT-2's layers are (in, out)
    theirs.load_state_dict(weights)  # strictly: all names are there, and no others
    batch = ours.batch(5)
    tokens = torch.from_numpy(np.array(batch["tokens"])).long()
    step, update = ours.step(), torch_gpt.updates(theirs, theirs)
    losses = [float(step(batch)[0]["loss"]) for _ in range(5)]
    assert [update(tokens).item() for _ in range(5)] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0] - 0.05
    found = theirs.wte.weight.detach().numpy()
    # Without decay they would differ by 2e-5 at most.
    np.testing.assert_allclose(found, step.state.params["wte"]["embedding"], rtol=0, atol=1e-6)
