"""A run's folder of files alone, written by hand: neither JAX nor Orbax is needed for it."""

import dataclasses
import json

from adabatch_jax.config import TrainConfig
from adabatch_jax.runs.checkpoints.manifest import write_manifest
from adabatch_jax.runs.folder.folder_reading import FORMAT
from adabatch_jax.runs.folder.metrics_files import MetricsPosition
from adabatch_jax.runs.resuming import digest_of_order

CONFIG = TrainConfig(epochs=2, batch_schedule="64, 1ep: 128", seed=3)
PLAN = CONFIG.plan(1442)
STEPS = (10, 20, 30)


def row(step):
    return {"step": step, "samples": PLAN.samples_at(step), "train_loss": 1 / (step + 1)}


def metrics_content(steps):
    return "".join(json.dumps(row(step)) + "\n" for step in steps).encode()


def write_checkpoint(folder, step, **changes):
    """A checkpoint of files alone: the doctor needs neither JAX nor Orbax to verify it."""
    samples = PLAN.samples_at(step)
    position = MetricsPosition.after(metrics_content(range(0, step + 1, 5)))
    run = {
        "format": FORMAT,
        "step": step,
        "samples": samples,
        "seed": CONFIG.seed,
        "plan": PLAN.to_dict(),
        "fingerprint": PLAN.fingerprint(samples),
        "examples_digest": f"digest of {samples}",
        "identity": CONFIG.to_dict(),
        "order_digest": digest_of_order(PLAN, CONFIG.seed, samples),
        "versions": {"adabatch_jax": "0.1.0", "numpy": "2.0.0"},
        "metrics": dataclasses.asdict(position),
        "decisions": [],
        "is_planned": True,
        "run_id": "0" * 16,
        "pending_row": None,
        "seconds": {},
        "phase_seconds": [],
        "layout": {},
        "restarts": 0,
        **changes,
    }
    checkpoint = folder / "checkpoints" / str(step)
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "state" / "data").write_bytes(bytes(range(256)) * step)
    write_manifest(checkpoint, run, {"params/w": ("float32[]", "0" * 64)})
    return checkpoint


def write_summary(run, step, **changes):
    samples = PLAN.samples_at(step)
    summary = {
        "step": step,
        "samples": samples,
        "examples_digest": f"digest of {samples}",
        "test_accuracy": 0.9612,
        "total_seconds": 1.5,
        "config_digest": CONFIG.digest,
    }
    (run / "summary.json").write_text(json.dumps(summary | changes))
