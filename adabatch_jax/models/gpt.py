"""A transformer that predicts each next token (Radford et al. 2019), also with today's changes to it.

GPT-2 has LayerNorm, learned positions, biases, and a head that is its embedding; the smaller ones
here have RMSNorm (Zhang & Sennrich 2019), rotary positions (Su et al. 2021), no biases and a head
of their own, as nanochat's and Llama's. Attributes have GPT-2's names: `h_0.attn.c_attn` is
`h.0.attn.c_attn` of OpenAI's file and of transformers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from adabatch_jax.config.gpt_settings import Attention, Norms, Positions
from adabatch_jax.models.initialization import Initializer, normal
from adabatch_jax.models.layers import Linear, as_computed, parameter, row
from adabatch_jax.system.errors import UsageError

_EPSILON = 1e-5  # of both norms
_ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class GPTShape:
    """What a GPT is built as.

    Attributes:
      vocabulary_size: tokens are 0 .. vocabulary_size - 1.
      width: features of each token in the stream that the layers add to; the MLPs are 4 times as
        wide.
      num_layers: blocks, each an attention and an MLP.
      num_heads: heads of each attention; they share the width.
      num_positions: the longest sequence where positions are learned; rotary ones have no end.
      norm: "layer" (LayerNorm) or "rms" (RMSNorm, which takes no mean away).
      positions: "learned" (added to the embedding) or "rotary" (queries and keys are turned).
      tied: whether the head is the embedding.
      bias: whether linear layers and LayerNorm add something.
      remat: whether a block's activations are computed again in the backward pass and not kept:
        memory for a third more time.
      attention: `implementation` of `jax.nn.dot_product_attention`: "xla", or "cudnn" on GPUs and
        in bfloat16, which keeps no (length, length) array.
      dtype: the type of the computation, "float32" or "bfloat16". Parameters, norms, the softmax
        and the logits are float32 in any case.

    Raises:
      UsageError: a value that can't work.

    >>> GPTShape(vocabulary_size=256, width=48, num_heads=5)
    Traceback (most recent call last):
    adabatch_jax.system.errors.UsageError: gpt.num_heads: 5 heads can't share a width of 48; ...
    """

    vocabulary_size: int
    width: int = 64
    num_layers: int = 4
    num_heads: int = 4
    num_positions: int = 1024
    norm: Norms = "rms"
    positions: Positions = "rotary"
    tied: bool = False
    bias: bool = False
    remat: bool = False
    attention: Attention = "xla"
    dtype: str = "float32"

    def __post_init__(self):
        for name in ("vocabulary_size", "width", "num_layers", "num_heads", "num_positions"):
            if getattr(self, name) < 1:
                raise UsageError(f"gpt.{name}: must be at least 1, got {getattr(self, name)}.")
        allowed = {"norm": Norms, "positions": Positions, "attention": Attention}
        for name, choices in allowed.items():
            if getattr(self, name) not in get_args(choices):
                listed = " or ".join(map(repr, get_args(choices)))
                raise UsageError(f"gpt.{name}: must be {listed}, got {getattr(self, name)!r}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise UsageError(f"`dtype` is 'float32' or 'bfloat16', got {self.dtype!r}.")
        step = self.num_heads * (2 if self.positions == "rotary" else 1)
        if self.width % step:
            raise UsageError(
                f"gpt.num_heads: {self.num_heads} heads can't share a width of {self.width}; with "
                f"{self.positions} positions it must be a multiple of {step}."
            )


class GPT(nnx.Module):
    """Logits of the next token at each position; `adabatch_jax.models.create` makes one by name."""

    def __init__(self, shape: GPTShape):
        self.shape = shape
        self.wte = Embedding(shape.vocabulary_size, shape.width)
        if shape.positions == "learned":
            self.wpe = Embedding(shape.num_positions, shape.width)
        for number in range(shape.num_layers):
            setattr(self, f"h_{number}", Block(shape))
        self.ln_f = Norm(shape)
        if not shape.tied:
            self.lm_head = Linear(
                shape.width, shape.vocabulary_size, use_bias=False, dtype=shape.dtype
            )

    def __call__(
        self, tokens: Array, positions: Array | None = None, segments: Array | None = None
    ) -> Array:
        """Returns float32 logits (batch, length, vocabulary) of what follows each token.

        Args:
          tokens: integers (batch, length).
          positions: (batch, length), of each token in its document; None: 0, 1, 2, ...
          segments: (batch, length), equal for tokens of one document, which see those before them
            in the same one alone; None: a row is one document.

        Raises:
          UsageError: the rows are longer than there are learned positions.
        """
        self._check_length(tokens.shape[1])
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        stream = self.wte(tokens)
        if self.shape.positions == "learned":
            stream = stream + self.wpe(positions)
        stream = stream.astype(_computed_type(self.shape, stream))
        mask = None
        if segments is not None:
            mask = (segments[:, :, None] == segments[:, None, :])[:, None]
        for number in range(self.shape.num_layers):
            block = getattr(self, f"h_{number}")
            block = _forgetting(block) if self.shape.remat else block
            stream = block(stream, positions, mask)
        return self._head(self.ln_f(stream))

    def _head(self, stream: Array) -> Array:
        kernel = self.wte.embedding[...].T if self.shape.tied else self.lm_head.kernel[...]
        stream, kernel = as_computed(self.shape.dtype, stream, kernel)
        # Added up, and left, in float32 whatever is multiplied.
        precise = jnp.promote_types(stream.dtype, jnp.float32)
        return jnp.matmul(stream, kernel, preferred_element_type=precise)

    def _check_length(self, length: int) -> None:
        if self.shape.positions == "learned" and length > self.shape.num_positions:
            raise UsageError(
                f"gpt.num_positions: the network has {self.shape.num_positions:,} learned positions, "
                f"and the sequences have {length:,} tokens; give it as many, or "
                "--gpt.positions rotary."
            )

    @property
    def rules(self) -> Mapping[type, Initializer]:
        """How each layer's weights are drawn: GPT-2's way.

        What is added to the stream is smaller, so that the stream of a deep one doesn't grow.
        """
        added = normal(0.02 / math.sqrt(2 * self.shape.num_layers))
        return {Embedding: normal(0.02), Linear: normal(0.02), Added: added}

    def update_flops(self, num_examples: int, sequence_length: int) -> int:
        """The floating-point operations that an update needs, forward and backward.

        6 for each token and weight that it is multiplied with, a head's but not an embedding's,
        and `12 * layers * width * length` for each token's attention (Chowdhery et al. 2022,
        appendix B): the model's, to compare with what a device could have done; those of `remat`
        and of an attention's half that causality leaves out don't change it.

        >>> nano = GPT(GPTShape(vocabulary_size=256))
        >>> nano.update_flops(num_examples=1, sequence_length=128) / 128
        1674624.0
        """
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        params.pop("wpe", None)
        if not self.shape.tied:
            params.pop("wte")
        num_weights = sum(leaf.size for leaf in jax.tree.leaves(params))
        attention = 12 * self.shape.num_layers * self.shape.width * sequence_length
        return num_examples * sequence_length * (6 * num_weights + attention)


class Block(nnx.Module):
    """Attention and an MLP, each of which adds to the stream."""

    def __init__(self, shape: GPTShape):
        self.ln_1, self.attn = Norm(shape), CausalAttention(shape)
        self.ln_2, self.mlp = Norm(shape), MLP(shape)

    def __call__(self, stream: Array, positions: Array, mask: Array | None) -> Array:
        stream = stream + self.attn(self.ln_1(stream), positions, mask)
        return stream + self.mlp(self.ln_2(stream))


class CausalAttention(nnx.Module):
    """Each token looks at itself and at those before it, where `mask` (batch, 1, to, from) allows."""

    def __init__(self, shape: GPTShape):
        self.shape = shape
        options = {"use_bias": shape.bias, "dtype": shape.dtype}
        self.c_attn = Linear(shape.width, 3 * shape.width, **options)  # queries, keys, values
        self.c_proj = Added(shape.width, shape.width, **options)

    def __call__(self, inputs: Array, positions: Array, mask: Array | None) -> Array:
        heads = (*inputs.shape[:2], self.shape.num_heads, -1)
        query, key, value = (
            features.reshape(heads) for features in jnp.split(self.c_attn(inputs), 3, axis=-1)
        )
        if self.shape.positions == "rotary":
            query, key = rotated(query, positions), rotated(key, positions)
        found = jax.nn.dot_product_attention(
            query, key, value, mask=mask, is_causal=True, implementation=self.shape.attention
        )
        return self.c_proj(found.reshape(inputs.shape))


class MLP(nnx.Module):
    """Two linear layers around a GELU, in GPT-2's approximation."""

    def __init__(self, shape: GPTShape):
        options = {"use_bias": shape.bias, "dtype": shape.dtype}
        self.c_fc = Linear(shape.width, 4 * shape.width, **options)
        self.c_proj = Added(4 * shape.width, shape.width, **options)

    def __call__(self, inputs: Array) -> Array:
        return self.c_proj(jax.nn.gelu(self.c_fc(inputs), approximate=True))


class Added(Linear):
    """A linear layer whose output is added to the stream: it begins smaller."""


class Norm(nnx.Module):
    """LayerNorm or RMSNorm of each token's features, computed in float32 at least."""

    def __init__(self, shape: GPTShape):
        self.is_centred = shape.norm == "layer"
        self.scale = parameter((shape.width,), 1)
        self.bias = parameter((shape.width,)) if shape.bias and self.is_centred else None

    def __call__(self, stream: Array) -> Array:
        features = stream.astype(jnp.promote_types(stream.dtype, jnp.float32))
        if self.is_centred:
            features = features - features.mean(-1, keepdims=True)
        variance = (features * features).mean(-1, keepdims=True)
        features = features * jax.lax.rsqrt(variance + _EPSILON) * row(self.scale[...], 3)
        if self.bias is not None:
            features = features + row(self.bias[...], 3)
        return features.astype(stream.dtype)


class Embedding(nnx.Module):
    """A row of features for each index."""

    def __init__(self, num_rows: int, width: int):
        self.embedding = parameter((num_rows, width))

    def __call__(self, indices: Array) -> Array:
        return self.embedding[...][indices]


def _forgetting(block: Block) -> Callable[..., Array]:
    """A block whose activations are computed again in the backward pass.

    `nnx.remat` would write into the block, which is not to be where jit closes over it.
    """
    graphdef, state = nnx.split(block)
    return functools.partial(
        jax.checkpoint(lambda state, *inputs: nnx.merge(graphdef, state)(*inputs)), state
    )


def rotated(features: Array, positions: Array) -> Array:
    """Turns pairs of features (batch, length, heads, size) by angles that grow with the position.

    Feature i is paired with i + size / 2 and turned by `position / 10000 ** (2 i / size)`, so that
    the product of a query and a key depends on how far apart they are.

    >>> rotated(jnp.ones((1, 2, 1, 2)), jnp.arange(2)[None])[0, :, 0].round(3).tolist()
    [[1.0, 1.0], [-0.301..., 1.38...]]
    """
    half = features.shape[-1] // 2
    precise = jnp.promote_types(features.dtype, jnp.float32)
    speeds = _ROTARY_BASE ** (-jnp.arange(half, dtype=precise) / half)
    angles = positions[:, :, None, None] * row(speeds, 4)  # the same for all heads
    first, second = jnp.split(features.astype(precise), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(features.dtype)


def _computed_type(shape: GPTShape, stream: Array) -> jnp.dtype:
    return stream.dtype if shape.dtype == "float32" else jnp.dtype(shape.dtype)
