"""nanoGPT's GPT-2 and its training step, in PyTorch and in our own words.

The shape and the step are those of Andrej Karpathy's repository karpathy/nanoGPT (`model.py`,
`train.py`): GPT-2's blocks with the norm before each part, `scaled_dot_product_attention`, a head
that is the embedding, no dropout; AdamW (betas 0.9 and 0.95) that decays by 0.1 what has two axes,
and gradients clipped at a norm of 1. One thing differs: GELU is OpenAI's approximation, which our
network computes as well, and nanoGPT's is exact.
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class GPT(nn.Module):
    """Called with tokens (batch, length + 1); returns the mean loss of each next one."""

    def __init__(
        self, vocabulary_size: int, length: int, width: int, num_layers: int, num_heads: int
    ):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary_size, width), nn.Embedding(length, width)
        self.h = nn.ModuleList(Block(width, num_heads) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                added = math.sqrt(2 * num_layers) if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 / added)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens):
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        positions = torch.arange(inputs.shape[1], device=tokens.device)
        stream = self.wte(inputs) + self.wpe(positions)
        for block in self.h:
            stream = block(stream)
        logits = functional.linear(self.ln_f(stream), self.wte.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), CausalAttention(width, num_heads)
        self.ln_2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, stream):
        stream = stream + self.attn(self.ln_1(stream))
        return stream + self.mlp(self.ln_2(stream))


class CausalAttention(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, stream):
        batch, length, width = stream.shape
        heads = (batch, length, self.num_heads, width // self.num_heads)
        query, key, value = (
            part.view(heads).transpose(1, 2) for part in self.c_attn(stream).split(width, dim=2)
        )
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(found.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, stream):
        return self.c_proj(functional.gelu(self.c_fc(stream), approximate="tanh"))


def updates(
    network: GPT, loss_of: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what performs an update on a batch of tokens, and gives the loss before it.

    `loss_of` calls the network, compiled or not.
    """
    parameters = [*network.parameters()]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].is_cuda
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=fused)

    def update(tokens: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return loss.detach()

    return update
