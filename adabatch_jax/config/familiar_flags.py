"""Flags of other programs, by the names that people bring, and what does here what they did."""

import re
from collections.abc import Collection

# Each sentence names the flags that take the place, which are looked for in it.
_LEADS = {
    "batch-size bs b batch global-batch-size train-batch-size batch-size-per-gpu "
    "per-device-train-batch-size per-gpu-train-batch-size micro-batch-size-per-gpu":
        "--batch-schedule 128 is a fixed batch, over all devices together, and --batch-schedule "
        "128 x2 every 20ep a growing one",
    "learning-rate base-lr init-lr blr max-lr peak-lr":
        "it is called --lr, such as --lr 0.1 x0.375 every 20ep",
    "lr-scheduler lr-scheduler-type lr-schedule sched scheduler lr-policy lr-decay decay-lr "
    "decay-type gamma step-size milestones lr-step-size lr-steps lr-gamma decay-epochs decay-rate":
        "the schedule is part of --lr, such as --lr 0.1 cosine or --lr 0.1, 30ep: 0.01",
    "warmup warmup-steps warmup-epochs warmup-ratio num-warmup-steps lr-warmup-epochs warmup-lr":
        "the warm-up is part of --lr, such as --lr 0.1 cosine warmup 5ep",
    "min-lr end-lr final-lr":
        "the last rate is part of --lr, such as --lr 0.1 cosine to 0.001",
    "batch-size-scheduler resize-freq resize-factor grow-every growth-factor max-batch-size":
        "growth is written into --batch-schedule, such as --batch-schedule 128 x2 every 20ep max "
        "2048",
    "gpus gpu gpu-id num-gpus ngpus ngpu n-gpu num-devices devices device tpu-cores accelerator "
    "device-ids use-cuda cuda no-cuda gpu-ids":
        "all devices that JAX sees are used; choose some with CUDA_VISIBLE_DEVICES=0,1 before the "
        "command, or with --cpu-devices 2 parts of a CPU",
    "nproc-per-node nproc num-procs np local-rank processes-per-node":
        "--local-processes 4 starts four processes on this machine, each with a share of its GPUs",
    "world-size rank node-rank nnodes num-nodes nodes num-machines machine-rank master-addr "
    "master-port main-process-ip main-process-port init-method dist-url dist-backend":
        "SLURM, mpirun and torchrun say it by variables; by hand it is --coordinator HOST:PORT "
        "--num-processes 4 --process-id 0",
    "resume resume-from resume-from-checkpoint resume-path auto-resume continue checkpoint ckpt "
    "ckpt-path checkpoint-path load restart":
        "the same command goes on by itself from the newest checkpoint of its folder, --workdir",
    "pretrained pretrained-weights pretrained-model weights init init-weights init-checkpoint "
    "finetune fine-tune finetune-from fine-tune-from initial-checkpoint transfer":
        "--init-from RUN, or a .safetensors or .npz, begins with those weights",
    "output-dir out-dir outdir output out save-dir save-path log-dir logdir checkpoint-dir "
    "checkpoints-dir experiment-dir exp-dir run-dir results-dir default-root-dir model-dir":
        "a run's folder is --workdir",
    "exp-name experiment run-name exp tag":
        "a run's name is --name",
    "amp fp16 bf16 mixed-precision precision half use-amp apex dtype opt-level autocast":
        "--compute-dtype bfloat16 computes in bfloat16 with float32 weights",
    "wandb use-wandb wandb-project log-wandb report-to wandb-entity":
        "--track wandb logs to Weights & Biases",
    "tensorboard tb use-tensorboard log-tensorboard":
        "TensorBoard's events are in the folder tensorboard of --workdir unless --track says "
        "otherwise",
    "early-stopping early-stop early-stopping-patience es-patience stop-patience":
        "--patience 5ep and --stop-when 'test_accuracy >= 0.99' end a run early",
    "num-workers workers j num-data-workers dataloader-num-workers preprocessing-num-workers "
    "threads num-threads pin-memory prefetch":
        "reading needs no number of workers: --input says where the examples lie, and all cores "
        "read",
    "max-steps num-steps total-steps train-steps iterations max-iters num-iterations iters "
    "max-train-steps num-train-steps":
        "a run's length in steps is --duration 1500st",
    "max-epochs num-epochs epoch num-train-epochs n-epochs train-epochs total-epochs":
        "it is called --epochs",
    "gradient-accumulation-steps accumulate-grad-batches grad-accum grad-accum-steps "
    "accumulation-steps accum-iter update-freq grad-accumulation-steps micro-batch-size "
    "microbatch batch-split":
        "--microbatch-size 64 computes a batch in parts of 64; how many there are follows from it",
    "optim opt optimiser optimizer-name optimizer-type":
        "it is called --optimizer, sgd, adamw or muon",
    "adam sgd adamw muon": "--optimizer says which: sgd, adamw or muon",
    "wd decay l2 weight-decay-rate": "it is called --weight-decay",
    "adam-beta1 adam-beta2 betas": "they are called --beta1 and --beta2",
    "eps adam-epsilon adam-eps": "it is called --epsilon",
    "nesterov":
        "only --momentum of sgd can be set here; any optax optimizer can be given to fit",
    "max-grad-norm grad-clip clip-grad gradient-clip-val clip-grad-norm grad-clip-norm max-norm "
    "clipping": "it is called --clip-norm",
    "n-layer n-layers num-hidden-layers depth": "it is called --gpt.num-layers",
    "n-head n-heads num-attention-heads": "it is called --gpt.num-heads",
    "n-embd hidden-size d-model embed-dim": "it is called --gpt.width",
    "gradient-checkpointing activation-checkpointing recompute": "it is called --gpt.remat",
    "arch a net network backbone architecture model-name model-name-or-path":
        "it is called --model",
    "data dataset-name data-set task": "it is called --dataset",
    "data-dir data-path dataroot root data-root dataset-dir data-folder datadir download":
        "the folder of prepared datasets is --data.dir, and which of them --dataset",
    "img-size image-size input-size crop-size resolution resize":
        "it is called --data.image-size",
    "augment augmentation aug hflip random-crop auto-augment aa":
        "--data.flip and --data.crop-padding 4 augment",
    "val-split validation-split val-ratio split val":
        "--data.holdout-split train[90%:] keeps examples out, with --data.train-split train[:90%]",
    "eval-steps eval-freq val-interval eval-interval evaluation-strategy val-check-interval "
    "check-val-every-n-epoch test-every validate-every":
        "it is called --eval-every, such as --eval-every 500st",
    "val-batch-size test-batch-size per-device-eval-batch-size":
        "it is called --eval-batch-size",
    "save-steps save-freq save-every save-interval checkpoint-interval save-strategy "
    "checkpoint-freq": "it is called --checkpoint-every, such as --checkpoint-every 1000st",
    "save-total-limit save-top-k max-to-keep keep-last":
        "--keep-checkpoints 3 keeps the newest, --keep-best the best, --keep-every some for good",
    "log-interval print-freq logging-steps log-freq log-steps display-freq log-every-n-steps":
        "it is called --log-every, such as --log-every 50st",
    "random-seed manual-seed rng-seed": "it is called --seed",
    "fsdp zero zero-stage deepspeed sharding shard":
        "--shard-params spreads parameters and optimizer state over the devices",
    "sync-bn sync-batchnorm sync-batch-norm syncbn":
        "BatchNorm is over the whole batch of all devices unless --batchnorm-group-size says "
        "otherwise",
    "time-limit max-duration max-seconds walltime timeout": "it is called --max-time, such as 3h50m",
    "deterministic benchmark cudnn-benchmark":
        "XLA_FLAGS sets that, see adabatch_jax/training/README.md; --seed decides all that is random",
    "dry-run fast-dev-run": "python -m adabatch_jax.plan shows what a run would do, with the same "
        "flags, and --duration 2st ends one after two steps",
    "quiet q verbose v progress-bar":
        "on a terminal a bar is shown and elsewhere lines; --log-every says how often a row is made",
}  # fmt: skip

_BY_NAME = {
    name.replace("-", ""): sentence for names, sentence in _LEADS.items() for name in names.split()
}


def advice(word: str, flags: Collection[str]) -> str | None:
    """What to give in place of a flag that isn't one of `flags` but another program's.

    None where it isn't known, or where the flags that would be right aren't this command's.

    >>> advice("--bs", {"--batch-schedule"})
    '--batch-schedule 128 is a fixed batch, over all devices together, and ...'
    >>> advice("--batchsize", {"--batch-schedule"}) == advice("--bs", {"--batch-schedule"})
    True
    >>> advice("--bs", {"--seeds"}), advice("--not-known", {"--lr"})
    (None, None)
    """
    sentence = _BY_NAME.get(word.replace("-", "").lower())
    is_ours = sentence is not None and flags_in(sentence) <= set(flags)
    return sentence if is_ours else None


def flags_in(sentence: str) -> set[str]:
    """The flags that a sentence names."""
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", sentence))
