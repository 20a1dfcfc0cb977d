"""Flags of other programs lead to ours by name."""

import pytest

from adabatch_jax.config import familiar_flags
from adabatch_jax.config.command_line import flag_of
from adabatch_jax.config.declarations import declarations
from adabatch_jax.config.familiar_flags import flags_in
from adabatch_jax.config.settings import TrainConfig
from adabatch_jax.train import Options, main

FLAGS = {flag_of(name) for cls in (Options, TrainConfig) for name in declarations(cls)}

BROUGHT = {
    "--batch-size 64": "--batch-schedule",
    "--bs=64": "--batch-schedule",
    "--batchsize 64": "--batch-schedule",
    "-b 64": "--batch-schedule",
    "--learning_rate 0.1": "--lr",
    "--lr-scheduler cosine": "--lr",
    "--gpus 2": "CUDA_VISIBLE_DEVICES",
    "--devices 2": "CUDA_VISIBLE_DEVICES",
    "--nproc_per_node 2": "--local-processes",
    "--master-addr n1": "--coordinator",
    "--resume": "--workdir",
    "--checkpoint x.pt": "--workdir",
    "--output-dir runs": "--workdir",
    "--amp": "--compute-dtype bfloat16",
    "--fp16": "--compute-dtype bfloat16",
    "--bf16": "--compute-dtype bfloat16",
    "--num-workers 4": "--input",
    "--workers 4": "--input",
    "-j 4": "--input",
    "--max-steps 100": "--duration",
    "--gradient-accumulation-steps 4": "--microbatch-size",
    "--optim adamw": "--optimizer",
    "--wd 1e-4": "--weight-decay",
    "--data-dir /data": "--data.dir",
    "--wandb": "--track wandb",
    "--report-to wandb": "--track wandb",
    "--early-stopping": "--patience 5ep",
    "--step-batch-size-schedule 0:8": "--from-megatron",
    "--seq-length 2048": "--tokens-per-example",
}  # fmt: skip


@pytest.mark.parametrize(("brought", "ours"), BROUGHT.items())
def test_what_is_brought_leads_to_ours_in_one_sentence(capsys, brought, ours):
    assert main(brought.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    flag = brought.split()[0].partition("=")[0].replace("_", "-")
    assert line.startswith(f"error: there is no flag {flag}: ") and line.endswith(".")
    assert ours in line and "did you mean" not in line


def test_each_sentence_names_flags_that_there_are():
    names = " ".join(familiar_flags._LEADS).split()
    assert not {f"--{name}" for name in names} & FLAGS
    for sentence in familiar_flags._LEADS.values():
        assert flags_in(sentence) and flags_in(sentence) <= FLAGS, sentence
