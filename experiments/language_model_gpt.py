"""A GPT of 0.2 million parameters on a text: growing batches where language models use them.

    bible -f gen1:1-rev22:21 > kjv.txt
    python -m experiments.reproduce language_model --tune-lr

The King James Bible is in Debian's package `bible-kjv-text`; `--dataset text:FILE` takes any other text.
A run reads 1.7 million bytes of it. All arms have AdamW, a rate that follows the root of the
batch, and the same cosine over what they read: "adaptive" doubles the batch three times, "seesaw"
where the cosine has halved (arXiv:2510.14717), "late_switch" grows at 75 % at once
(arXiv:2602.14208). All compute 8 sequences of 128 bytes at a time.
"""

import dataclasses

from adabatch_jax.config import DataSettings, TrainConfig

_BASE = TrainConfig(
    dataset="text:kjv.txt",
    model="gpt_nano",
    lr="0.008 warmup 5% then cosine to 0.0008",
    coupling="sqrt",
    reference_batch_size=8,
    optimizer="adamw",
    weight_decay=0.1,
    beta2=0.99,
    clip_norm=1.0,
    epochs=0.4,
    microbatch_size=8,
    eval_every="12.5%",
    eval_batch_size=16,
    checkpoint_every="50%",
    keep_checkpoints=1,
    keep_best=None,
    log_every="1%",
    data=DataSettings(sequence_length=128, test_split="2%"),
)

arms = {
    name: dataclasses.replace(_BASE, batch_schedule=sizes)
    for name, sizes in {
        "fixed_small": "8",
        "fixed_large": "64",
        "adaptive": "8 x2 every 25% max 64",
        "seesaw": "8 x2 seesaw max 64",
        "late_switch": "8, 75%: 64",
    }.items()
}
# As the paper's large batch it has the small one's rate; the search tries more and less.
arms["fixed_large"] = dataclasses.replace(arms["fixed_large"], reference_batch_size=64)
