"""A run's folder of files alone, written by hand: neither JAX nor Orbax is needed for it."""

import dataclasses
import json
from pathlib import Path

from adabatch_jax.config import TrainConfig
from adabatch_jax.runs.checkpoints.manifest import Part, SavedArray, write_manifest
from adabatch_jax.runs.checkpoints.verifying import Found
from adabatch_jax.runs.folder.finished_run import digests_of_files
from adabatch_jax.runs.folder.folder_reading import FORMAT
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.runs.resuming import digest_of_order
from adabatch_jax.system.environment import package_versions
from adabatch_jax.system.files import write_sealed

CONFIG = TrainConfig(epochs=2, batch_schedule="64, 1ep: 128", lr="0.05", seed=3)
PLAN = CONFIG.plan(1442)
STEPS = (10, 20, 30)
RUN_ID = "0" * 16


def row(step):
    return {"step": step, "samples": PLAN.samples_at(step), "train_loss": 1 / (step + 1)}


def metrics_content(steps):
    return "".join(json.dumps(row(step)) + "\n" for step in steps).encode()


def done_so_far(config, plan, step):
    """What a checkpoint of this configuration says of the updates before it."""
    samples = plan.samples_at(step)
    return {
        "step": step,
        "samples": samples,
        "seed": config.seed,
        "plan": plan.to_dict(),
        "fingerprint": plan.fingerprint(samples),
        "order_digest": digest_of_order(plan, config.seed, samples),
        "data": {},
        "numerics": package_versions(),
        "identity": config.to_dict(),
    }


def found_checkpoint(config, plan, step, workdir=Path("runs/x")):
    """A checkpoint as one finds it, which is on no disk."""
    path = workdir / "checkpoints" / str(step)
    return Found(step, path, done_so_far(config, plan, step), {})


def write_checkpoint(folder, step, **changes):
    """A checkpoint of files alone: the doctor needs neither JAX nor Orbax to verify it."""
    position = MetricsPosition.after(metrics_content(range(0, step + 1, 5)))
    run = {
        "format": FORMAT,
        **done_so_far(CONFIG, PLAN, step),
        "examples_digest": f"digest of {PLAN.samples_at(step)}",
        "metrics": dataclasses.asdict(position),
        "decisions": [],
        "is_planned": True,
        "means": {"weight": "0x0.0p+0", "sums": {}},
        "run_id": RUN_ID,
        "pending_row": None,
        "seconds": {},
        "phase_seconds": [],
        "layout": {},
        "restarts": 0,
        "dataset": None,
        **changes,
    }
    checkpoint = folder / "checkpoints" / str(step)
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "state" / "data").write_bytes(bytes(range(256)) * step)
    write_manifest(
        checkpoint, run, {"params/w": SavedArray("float32[]", {"": Part("0" * 64, "state")})}
    )
    return checkpoint


def content(run):
    """Every file of a run's folder, the lock excepted."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def write_summary(run, step, **changes):
    samples = PLAN.samples_at(step)
    summary = {
        "step": step,
        "samples": samples,
        "examples_digest": f"digest of {samples}",
        "test_accuracy": 0.9612,
        "total_seconds": 1.5,
        "config_digest": CONFIG.digest,
        "run_id": RUN_ID,
        "files": digests_of_files(run),
    }
    write_sealed(run / "summary.json", summary | changes)
