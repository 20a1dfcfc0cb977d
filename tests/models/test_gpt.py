"""The networks of tokens, against the same in numpy."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adabatch_jax as ab
from adabatch_jax import models
from adabatch_jax.data.mesh import data_mesh
from adabatch_jax.models import initialization
from adabatch_jax.models.gpt import GPT, GPTShape
from adabatch_jax.system.errors import UsageError
from tests.models import gpt_in_numpy

VOCABULARY, WIDTH, HEADS, LENGTH = 23, 16, 2, 11
SMALL = {"width": WIDTH, "num_layers": 2, "num_heads": HEADS}
AS_GPT2 = {
    "norm": "layer", "positions": "learned", "num_positions": 12, "tied": True, "bias": True,
}  # fmt: skip
BUILT = {
    "modern": {},
    "gpt2": AS_GPT2,
    "tied and rotary": {"tied": True, "norm": "layer"},
    "learned and rms": {"positions": "learned", "num_positions": 12, "bias": True},
}


def small(seed=0, **options):
    """A small network whose every array is random, none too small to be seen."""
    module = models.create("gpt_nano", VOCABULARY, **(SMALL | options))
    rng = np.random.default_rng(seed)
    arrays = {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(np.float32)
        for name, array in models.to_torch_arrays(module).items()
    }
    models.load_torch_weights(module, arrays)
    return module, arrays


def in_numpy(module, arrays, rows, positions=None, segments=None):
    shape = module.shape
    return np.stack([
        gpt_in_numpy.logits(
            arrays, row, HEADS, shape.positions == "rotary", shape.norm == "layer",
            None if positions is None else positions[i], None if segments is None else segments[i],
        )
        for i, row in enumerate(rows)
    ])  # fmt: skip


def called(module, *arguments):
    """A module's logits; compiled as a whole, not operation by operation."""
    return jax.jit(lambda *given: module(*given))(*arguments)


@pytest.fixture
def rows():
    return np.random.default_rng(1).integers(0, VOCABULARY, (3, LENGTH + 1)).astype(np.int32)


def batch_of(rows, **further):
    return {
        "tokens": rows,
        "index": np.arange(len(rows), dtype=np.int32),
        "epoch": np.zeros(len(rows), np.int32),
        "weight": np.ones(len(rows), np.float32),
        **further,
    }


@pytest.mark.parametrize("built", BUILT)
def test_logits_and_loss_are_those_of_numpy(built, rows):
    module, arrays = small(**BUILT[built])
    expected = in_numpy(module, arrays, rows[:, :-1])
    np.testing.assert_allclose(called(module, rows[:, :-1]), expected, atol=1e-4)
    params, state, loss_fn, eval_fn = models.functions(module, token_bytes=np.arange(VOCABULARY))
    batch = batch_of(rows, weight=np.array([1, 0, 2], np.float32))
    loss, (_, metrics) = loss_fn(params, state, batch, jax.random.key(0))
    each = np.stack([gpt_in_numpy.losses(*pair) for pair in zip(expected, rows[:, 1:])])
    mean = (each[0].mean() + 2 * each[2].mean()) / 3
    assert float(loss) == pytest.approx(mean, rel=1e-5)
    assert float(metrics["bits_per_token"]) == pytest.approx(mean / math.log(2), rel=1e-5)
    num_bytes = (rows[0, 1:].mean() + 2 * rows[2, 1:].mean()) / 3
    assert float(metrics["bytes_per_token"]) == pytest.approx(num_bytes, rel=1e-6)
    hits = (expected.argmax(-1) == rows[:, 1:]).mean(1)
    accuracy = float(eval_fn(params, state, batch)["accuracy"])
    assert accuracy == pytest.approx((hits[0] + 2 * hits[2]) / 3, abs=1e-6)


@pytest.mark.parametrize("built", ["modern", "gpt2"])
def test_gradients_are_those_of_numpys_differences(built, rows):
    module, arrays = small(**BUILT[built])
    params, state, loss_fn, _ = models.functions(module)
    grads = jax.grad(lambda p: loss_fn(p, state, batch_of(rows), jax.random.key(0))[0])(params)
    nnx.update(module, grads)
    grads = models.to_torch_arrays(module)
    rng, step = np.random.default_rng(2), 1e-4
    for name in sorted(arrays):
        direction = rng.standard_normal(arrays[name].shape)

        def loss(amount):
            moved = {**arrays, name: arrays[name] + amount * direction}
            found = in_numpy(module, moved, rows[:, :-1])
            pairs = zip(found, rows[:, 1:], strict=True)
            return np.mean([gpt_in_numpy.losses(*pair) for pair in pairs])

        expected = (loss(step) - loss(-step)) / (2 * step)
        assert np.vdot(grads[name], direction) == pytest.approx(expected, abs=1e-4), name


@pytest.mark.parametrize("built", BUILT)
def test_packed_documents_are_as_if_alone(built, rows):
    module, arrays = small(**BUILT[built])
    lengths = (4, 1, 6)
    positions = np.concatenate([np.arange(n) for n in lengths])[None]
    segments = np.repeat(np.arange(3), lengths)[None]
    inputs = rows[:1, :-1]
    packed = called(module, inputs, positions, segments)
    parts = np.split(inputs[0], np.cumsum(lengths)[:-1])
    alone = np.concatenate([in_numpy(module, arrays, part[None])[0] for part in parts])
    np.testing.assert_allclose(packed[0], alone, atol=1e-4)
    np.testing.assert_allclose(
        packed, in_numpy(module, arrays, inputs, positions, segments), atol=1e-4
    )
    mask = np.ones((1, LENGTH), np.int8)
    mask[0, [3, 4]] = 0  # what would follow a document's end
    batch = batch_of(
        rows[:1], positions=positions, segments=segments, mask=mask,
        weight=np.array([mask.sum()], np.float32),
    )  # fmt: skip
    params, state, loss_fn, _ = models.functions(module)
    each = gpt_in_numpy.losses(alone, rows[0, 1:])
    loss = loss_fn(params, state, batch, jax.random.key(0))[0]
    assert float(loss) == pytest.approx(each[mask[0] > 0].mean(), rel=1e-5)


def test_what_comes_later_is_not_seen(rows):
    module, _ = small()
    changed = rows.copy()
    changed[:, 6:] = (changed[:, 6:] + 1) % VOCABULARY
    before, after = called(module, rows), called(module, changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).any()


def test_what_is_computed_again_is_the_same(rows):
    losses, grads = [], []
    for remat in (False, True):
        module, _ = small(remat=remat)
        params, state, loss_fn, _ = models.functions(module)

        def loss(params):
            return loss_fn(params, state, batch_of(rows), jax.random.key(0))[0]

        assert ("remat2" in str(jax.make_jaxpr(jax.grad(loss))(params))) == remat
        loss, grad = jax.value_and_grad(loss)(params)
        losses.append(loss), grads.append(grad)
    assert losses[0] == losses[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *grads)


@pytest.mark.parametrize("built", ["modern", "gpt2"])
def test_bfloat16_is_roughly_the_same_from_float32_parameters(built, rows):
    module, arrays = small(dtype="bfloat16", **BUILT[built])
    precise, got = in_numpy(module, arrays, rows), called(module, rows)
    assert got.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(got, precise, atol=0.05 * float(abs(precise).max()))
    jaxpr = str(jax.make_jaxpr(lambda tokens: module(tokens))(rows))
    # The head's logits and the scores before the softmax; and all of them of bfloat16.
    types = re.findall(r":(\w+)\[[\d,]*\] = dot_general", jaxpr)
    assert sorted(types) == ["bf16"] * 2 * 5 + ["f32"] * (2 + 1)
    operands = re.findall(r"(\w+):(\w+)\[", jaxpr)
    kinds = dict(operands)
    inputs = re.findall(r"= dot_general\[.*?\] (\w+) (\w+)", jaxpr, re.DOTALL)
    assert {kinds[name] for pair in inputs for name in pair} == {"bf16"}


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("gpt_nano", 256, 4 * (12 * 64**2 + 2 * 64) + 64 + 2 * 256 * 64),
        ("gpt_micro", 256, 4 * (12 * 128**2 + 2 * 128) + 128 + 2 * 256 * 128),
        ("gpt_124m", 50_257, 124_439_808),  # what transformers counts of "gpt2"
    ],
)
def test_sizes_and_operations(name, num_classes, count, monkeypatch):
    monkeypatch.setattr(initialization, "initialize", lambda *_: None)
    module = nnx.eval_shape(lambda: models.create(name, num_classes))
    params = nnx.state(module, nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == count
    shape = module.shape
    looked_up = 1024 * 768 if name == "gpt_124m" else num_classes * shape.width
    length = 128
    attention = 2 * 2 * shape.width * length * shape.num_layers * 3  # two products, thrice
    expected = 4 * length * (6 * (count - looked_up) + attention)
    assert module.update_flops(4, length) == expected


def test_initial_weights_are_gpt2s():
    params = models.functions(models.create("gpt_micro", 256, bias=True))[0]
    for kernel, std in (
        (params["wte"]["embedding"], 0.02),
        (params["h_1"]["attn"]["c_attn"]["kernel"], 0.02),
        (params["h_1"]["mlp"]["c_fc"]["kernel"], 0.02),
        (params["h_1"]["attn"]["c_proj"]["kernel"], 0.02 / math.sqrt(8)),
        (params["h_1"]["mlp"]["c_proj"]["kernel"], 0.02 / math.sqrt(8)),
        (params["lm_head"]["kernel"], 0.02),
    ):
        assert float(kernel.std()) == pytest.approx(std, rel=0.03)
    assert not params["h_1"]["mlp"]["c_fc"]["bias"].any()
    assert (params["ln_f"]["scale"] == 1).all()


def test_weights_have_gpt2s_names_and_come_back():
    module, arrays = small(**AS_GPT2)
    assert {name for name in arrays if name.startswith("h.1.")} == {
        f"h.1.{layer}.{leaf}"
        for layer in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for leaf in ("weight", "bias")
    }
    assert {n for n in arrays if n[0] != "h"} == {
        "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias",
    }  # fmt: skip
    assert arrays["h.0.attn.c_attn.weight"].shape == (WIDTH, 3 * WIDTH)
    assert arrays["wte.weight"].shape == (VOCABULARY, WIDTH)
    state_dict = {f"transformer.{name}": array for name, array in arrays.items()}
    state_dict["lm_head.weight"] = arrays["wte.weight"]
    state_dict["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 12, 12)))  # a mask
    other, _ = small(seed=7, **AS_GPT2)
    models.load_torch_weights(other, state_dict)
    back = models.to_torch_arrays(other)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    state_dict["lm_head.weight"] = arrays["wte.weight"] + 1
    with pytest.raises(UsageError, match="hold 'lm_head.weight', which the network doesn't have"):
        models.load_torch_weights(other, state_dict)


def test_a_head_of_its_own_is_a_layer_of_pytorch():
    module, arrays = small()
    assert arrays["lm_head.weight"].shape == (VOCABULARY, WIDTH)
    np.testing.assert_array_equal(arrays["lm_head.weight"].T, module.lm_head.kernel[...])


def test_a_row_that_holds_no_token_has_no_loss(rows):
    params, state, loss_fn, _ = models.functions(small()[0])
    for place, token in ((0, VOCABULARY), (LENGTH, VOCABULARY), (3, -1)):
        changed = rows.copy()
        changed[1, place] = token
        assert np.isnan(loss_fn(params, state, batch_of(changed), jax.random.key(0))[0])


def test_a_network_that_would_look_into_other_documents_is_refused(rows):
    class Mine(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.zeros((VOCABULARY, VOCABULARY)))

        def __call__(self, tokens):
            return self.table[...][tokens]

    params, state, loss_fn, _ = models.functions(Mine())
    assert np.isfinite(loss_fn(params, state, batch_of(rows), jax.random.key(0))[0])
    batch = batch_of(rows, segments=np.zeros((3, LENGTH), np.int32))
    with pytest.raises(UsageError, match="'segments', several documents in a row"):
        loss_fn(params, state, batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_heads": 3}, "gpt.num_heads: 3 heads can't share a width of 16"),
        ({"num_heads": 16}, "with rotary positions it must be a multiple of 32"),
        ({"norm": "batch"}, "gpt.norm: must be 'layer' or 'rms', got 'batch'"),
        ({"attention": "flash"}, "gpt.attention: must be 'xla' or 'cudnn', got 'flash'"),
        ({"num_layers": 0}, "gpt.num_layers: must be at least 1, got 0"),
        ({"dtype": "float16"}, "`dtype` is 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_shapes_that_cannot_be(options, sentence):
    with pytest.raises(UsageError, match=sentence.replace("(", r"\(")):
        models.create("gpt_nano", VOCABULARY, **(SMALL | options))


def test_rows_longer_than_the_positions_are_refused(rows):
    module, _ = small(**(AS_GPT2 | {"num_positions": LENGTH}))
    called(module, rows[:, :LENGTH])
    with pytest.raises(UsageError, match="has 11 learned positions, and the sequences have 12"):
        called(module, rows)


def test_networks_of_images_are_built_as_they_are():
    with pytest.raises(UsageError, match="gpt.tied: cnn_digits is no GPT, and built as it is"):
        models.create("cnn_digits", image_shape=(8, 8, 1), tied=True)


def test_an_update_is_the_same_in_any_micro_batches_and_on_any_devices():
    rng = np.random.default_rng(3)
    mask = (rng.random((7, LENGTH)) < 0.7).astype(np.int8)
    source = ab.array_source({
        "tokens": rng.integers(0, VOCABULARY, (7, LENGTH + 1)).astype(np.int32),
        "mask": mask,
        "weight": mask.sum(1).astype(np.float32),
    })  # fmt: skip
    module, arrays = small(num_layers=1)
    params, state, loss_fn, _ = models.functions(module)
    plan, tx = ab.make_plan("7", 7, "1ep"), optax.sgd(0.1)
    found = []
    for mesh, microbatch_size in ((None, None), (None, 3), (data_mesh(jax.devices()[:2]), None)):
        step = ab.make_train_step(loss_fn, tx, mesh, microbatch_size)
        start = ab.TrainState.create(params=params, tx=tx, model_state=state)
        (batch,) = ab.batches(source, plan, mesh=mesh, microbatch_size=microbatch_size)
        after, metrics = step(start, batch, jax.random.key(0))
        found.append((after.params, float(metrics["loss"])))
    tokens = source.arrays["tokens"]
    each = [
        gpt_in_numpy.losses(*pair)
        for pair in zip(in_numpy(module, arrays, tokens[:, :-1]), tokens[:, 1:], strict=True)
    ]
    for after, loss in found:
        assert loss == pytest.approx(np.average(each, weights=mask), rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][0], after)


def test_an_evaluation_tells_perplexity_and_bits_per_byte(rows):
    module, _ = small(num_layers=1)
    params, state, _, eval_fn = models.functions(module, token_bytes=np.arange(VOCABULARY))
    start = ab.TrainState.create(params=params, tx=optax.sgd(0.1), model_state=state)
    found = ab.evaluate(eval_fn, start, ab.array_source({"tokens": rows}), batch_size=2)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-6)
    total_bits = found["loss"] / math.log(2) * rows[:, 1:].size
    assert found["bits_per_byte"] == pytest.approx(total_bits / rows[:, 1:].sum(), rel=1e-6)


def test_a_gpt_of_the_library_takes_any_shape():
    module = GPT(GPTShape(vocabulary_size=5, width=8, num_layers=1, num_heads=1))
    assert called(module, jnp.zeros((1, 3), jnp.int32)).shape == (1, 3, 5)
