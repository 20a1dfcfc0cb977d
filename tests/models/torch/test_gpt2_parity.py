"""Our GPT against transformers' GPT-2, in the same process: the same weights by its names.

    pip install torch transformers

They aren't among the packages of the tests: without them these are left out, and `test_gpt.py`
compares with numpy.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from adabatch_jax import models

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install it")

VOCABULARY, LENGTH = 101, 24


@pytest.fixture(scope="module")
def original():
    """A GPT-2 with random weights, none too small to be seen."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=48, n_layer=3, n_head=4, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def in_numpy(tensors):
    return {name: tensor.detach().numpy() for name, tensor in tensors}


def ours(seed=5):
    return models.create(
        "gpt_124m", VOCABULARY, seed=seed, width=48, num_layers=3, num_heads=4, num_positions=32
    )


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).integers(0, VOCABULARY, (5, LENGTH + 1)).astype(np.int32)


def test_logits_and_gradients_are_those_of_transformers(original, rows):
    module = ours()
    models.load_torch_weights(module, in_numpy(original.state_dict().items()))
    tokens = torch.from_numpy(rows).long()
    theirs = original(tokens[:, :-1]).logits
    logits = jax.jit(lambda tokens: module(tokens))(rows[:, :-1])
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=1e-4)

    loss = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), tokens[:, 1:].flatten())
    original.zero_grad()
    loss.backward()
    # The head is the embedding, whose gradient both have once.
    expected = in_numpy((name, p.grad) for name, p in original.named_parameters())
    params, state, loss_fn, _ = models.functions(module)
    batch = {
        "tokens": rows, "weight": np.ones(5, np.float32), "index": np.arange(5), "epoch": np.zeros(5, int),
    }  # fmt: skip
    found, grads = jax.value_and_grad(lambda p: loss_fn(p, state, batch, None)[0])(params)
    assert float(found) == pytest.approx(loss.item(), rel=1e-6)
    nnx.update(module, grads)
    grads = models.to_torch_arrays(module)
    assert {f"transformer.{name}" for name in grads} == expected.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, expected[f"transformer.{name}"], atol=1e-4, err_msg=name)
        assert abs(grad).max() > 1e-3


def test_transformers_takes_our_weights(original, rows):
    module = ours(seed=6)
    network = transformers.GPT2Model(original.config).eval()
    tensors = {n: torch.from_numpy(a) for n, a in models.to_torch_arrays(module).items()}
    network.load_state_dict(tensors)  # strictly: all names are there, and no others
    whole = transformers.GPT2LMHeadModel(original.config).eval()
    whole.transformer = network
    whole.tie_weights()
    theirs = whole(torch.from_numpy(rows).long()).logits.detach().numpy()
    np.testing.assert_allclose(jax.jit(lambda tokens: module(tokens))(rows), theirs, atol=1e-4)
