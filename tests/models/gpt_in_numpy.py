"""A GPT's forward pass again, in numpy and float64, from arrays by GPT-2's names."""

import math

import numpy as np


def logits(arrays, tokens, num_heads, rotary=False, centred=True, positions=None, segments=None):
    """Logits (length, vocabulary) of one row; without `centred` norms are RMSNorm."""
    arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    length = len(tokens)
    positions = np.arange(length) if positions is None else positions
    segments = np.zeros(length) if segments is None else segments

    def linear(name, inputs):
        return inputs @ arrays[f"{name}.weight"] + arrays.get(f"{name}.bias", 0)

    def norm(name, inputs):
        if centred:
            inputs = inputs - inputs.mean(-1, keepdims=True)
        size = np.sqrt((inputs**2).mean(-1, keepdims=True) + 1e-5)
        return inputs / size * arrays[f"{name}.weight"] + arrays.get(f"{name}.bias", 0)

    def turned(features):
        """Pairs of features as complex numbers, turned one by one."""
        half = features.shape[1] // 2
        pairs = features[:, :half] + 1j * features[:, half:]
        for row, position in enumerate(positions):
            for i in range(half):
                pairs[row, i] *= np.exp(1j * position / 10_000 ** (2 * i / (2 * half)))
        return np.concatenate([pairs.real, pairs.imag], axis=1)

    def attention(name, inputs):
        queries, keys, values = np.split(linear(f"{name}.c_attn", inputs), 3, axis=-1)
        found = np.zeros_like(inputs)
        size = inputs.shape[1] // num_heads
        for head in range(num_heads):
            columns = slice(head * size, (head + 1) * size)
            query, key, value = queries[:, columns], keys[:, columns], values[:, columns]
            if rotary:
                query, key = turned(query), turned(key)
            for i in range(length):
                seen = [j for j in range(i + 1) if segments[j] == segments[i]]
                scores = np.exp(key[seen] @ query[i] / math.sqrt(size))
                found[i, columns] = scores / scores.sum() @ value[seen]
        return linear(f"{name}.c_proj", found)

    def gelu(inputs):
        inner = math.sqrt(2 / math.pi) * (inputs + 0.044715 * inputs**3)
        return 0.5 * inputs * (1 + np.tanh(inner))

    stream = arrays["wte.weight"][tokens]
    if not rotary:
        stream = stream + arrays["wpe.weight"][positions]
    number = 0
    while f"h.{number}.ln_1.weight" in arrays:
        block = f"h.{number}"
        stream = stream + attention(f"{block}.attn", norm(f"{block}.ln_1", stream))
        inner = gelu(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", stream)))
        stream = stream + linear(f"{block}.mlp.c_proj", inner)
        number += 1
    return norm("ln_f", stream) @ arrays.get("lm_head.weight", arrays["wte.weight"]).T


def losses(logits, targets):
    """The loss of each target, in nats."""
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
