"""What a run leaves on disk, and how it is taken up again."""

import dataclasses
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from adabatch_jax.costs import Prediction
from adabatch_jax.data.batches import examples_at
from adabatch_jax.errors import RestoreError, UsageError, explain_missing
from adabatch_jax.reporting.environment import describe_environment
from adabatch_jax.reporting.files import storage_errors, write_atomically
from adabatch_jax.reporting.metrics import MetricsPosition, MetricsWriter, read_metrics
from adabatch_jax.reporting.progress import Progress
from adabatch_jax.schedules.plan import BatchPlan, Step
from adabatch_jax.training.digests import ExamplesDigest, weights_digest
from adabatch_jax.training.state import TrainState

if TYPE_CHECKING:
    from adabatch_jax.training.checkpoint import Checkpoints

ACTIVITIES = ("compile", "step", "input", "evaluation", "checkpoint", "background_compile")
TRAINING = ("step", "input")


class RunRecord:
    """The rows, the checkpoints and the account of seconds of a run; without workdir in memory.

    Attributes:
      history: the rows of metrics.
      examples: the digest of the examples consumed.
      start_step: the update to go on from.
      phase: the phase that seconds of training are spent on now.
    """

    def __init__(
        self,
        plan: BatchPlan,
        seed: int,
        workdir: str | Path | None,
        keep_checkpoints: int,
        identity: Mapping[str, Any],
    ):
        self._plan, self._seed, self._identity = plan, seed, dict(identity)
        self._workdir = None if workdir is None else Path(workdir)
        self._keep = keep_checkpoints
        self._checkpoints: Checkpoints | None = None
        self._metrics: MetricsWriter | None = None
        self._metrics_position: MetricsPosition | None = None
        self._seconds: Counter[str] = Counter()
        self._phase_seconds = [0.0] * len(plan.phases)
        self._layout: dict[str, Any] = {}
        self._restarts = 0
        self.history: list[dict[str, Any]] = []
        self.examples = ExamplesDigest()
        self.start_step = 0
        self.phase = 0
        self._since = time.monotonic()

    def open(self) -> dict[str, Any]:
        """Opens the workdir; returns the layout that its run was begun with, or nothing."""
        if self._workdir is None:
            return {}
        try:
            from adabatch_jax.training.checkpoint import Checkpoints  # not needed in memory
        except ModuleNotFoundError as error:
            raise explain_missing(error) or error from error

        with storage_errors(self._workdir):
            self._workdir.mkdir(parents=True, exist_ok=True)
        config = self._workdir / "config.json"
        if not config.exists():  # it tells a run's folder from a foreign one
            write_json(config, self._identity)
        self._checkpoints = Checkpoints(self._workdir / "checkpoints", self._keep)
        steps = self._checkpoints.steps()
        return self._checkpoints.read_run(steps[-1])["layout"] if steps else {}

    def begin(self, state: TrainState, progress: Progress) -> TrainState:
        """Returns the state of the workdir's newest checkpoint, or where it has none `state`."""
        if self._workdir is None:
            self._start_from(state)
            return state
        steps = self._checkpoints.steps()
        if steps:
            state = self._resume(steps[-1], state, progress)
            if self._is_finished():
                self.history = read_metrics(self._workdir / "metrics.jsonl")
                return state
        else:
            self._start_from(state)
        if self.start_step < self._plan.num_steps:  # perhaps of a run that is prolonged
            with storage_errors(self._workdir):
                (self._workdir / "summary.json").unlink(missing_ok=True)
        write_json(self._workdir / "config.json", self._identity)
        self._write_plan()
        self._metrics = MetricsWriter(self._workdir, self._metrics_position)
        self.history = read_metrics(self._workdir / "metrics.jsonl")
        return state

    def keep_layout(self, layout: Mapping[str, Any]) -> None:
        """Notes what the bits of the result depend on beside the settings, as JSON values."""
        self._layout = dict(layout)
        if self._metrics is None:
            return
        environment = describe_environment(device.device_kind for device in jax.devices())
        environment |= {"layout": self._layout, "restarts": self._restarts}
        write_json(self._workdir / "environment.json", environment)

    def _write_plan(self) -> None:
        """Writes plan.json; what was predicted before a restart stays in it."""
        path = self._workdir / "plan.json"
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError):
            before = {}
        kept = {"prediction": before["prediction"]} if "prediction" in before else {}
        write_json(path, self._plan.to_dict() | kept)

    @property
    def wants_prediction(self) -> bool:
        """Whether there is a plan.json in which nothing was predicted for its plan."""
        if self._metrics is None:
            return False
        plan = json.loads((self._workdir / "plan.json").read_text())
        if "prediction" not in plan:
            return True
        # Of a run that was prolonged since the old one is of no use.
        phases = Prediction.from_dict(plan["prediction"]).phases
        predicted = [(phase.batch_size, phase.num_updates) for phase in phases]
        return predicted != [(phase.batch_size, phase.num_steps) for phase in self._plan.phases]

    def predicted(self, prediction: Mapping[str, Any]) -> None:
        """Adds what the run should take to plan.json."""
        write_json(
            self._workdir / "plan.json", self._plan.to_dict() | {"prediction": dict(prediction)}
        )

    def _start_from(self, state: TrainState) -> None:
        """Begins where the given state stands."""
        step = int(state.step)
        if step > self._plan.num_steps:
            raise UsageError(
                f"the state has {step} updates behind it, more than the plan's "
                f"{self._plan.num_steps}; give `TrainState.create(...)` to begin anew."
            )
        self.start_step = step
        for past in itertools.islice(self._plan.steps(), step):
            self.audit(past)

    def _is_finished(self) -> bool:
        summary = self._workdir / "summary.json"
        return self.start_step == self._plan.num_steps and summary.exists()

    def audit(self, step: Step) -> None:
        """Adds an update's examples to the digest."""
        index, epoch = examples_at(
            self._plan.num_examples, self._seed, step.start_sample, step.num_real
        )
        self.examples.update(step.start_sample, index, epoch)

    def _resume(self, step: int, state: TrainState, progress: Progress) -> TrainState:
        run = self._checkpoints.read_run(step)
        check_past(run, self._plan, self._seed, self._workdir)
        state, run = self._checkpoints.restore(step, state)
        self.start_step = step
        self.examples = ExamplesDigest(run["examples_digest"])
        self._metrics_position = MetricsPosition(**run["metrics"])
        self._seconds = Counter(run["seconds"])
        for phase, seconds in enumerate(run["phase_seconds"][: len(self._phase_seconds)]):
            self._phase_seconds[phase] = seconds
        self._restarts = run["restarts"] + 1
        if step < self._plan.num_steps:
            progress.message(
                f"resuming after update {step:,} of {self._plan.num_steps:,} "
                f"(sample {run['samples']:,})"
            )
        return state

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Accounts the seconds inside to one of `ACTIVITIES`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - begin
            self._seconds[activity] += seconds
            if activity in TRAINING:
                self._phase_seconds[self.phase] += seconds

    def add_seconds(self, activity: str, seconds: float) -> None:
        """Accounts seconds that passed elsewhere, while training went on."""
        self._seconds[activity] += seconds

    def elapsed_seconds(self) -> float:
        """Seconds since the run began, over all restarts."""
        return self._seconds["total"] + time.monotonic() - self._since

    def training_seconds(self) -> float:
        """Seconds in updates and in waiting for their input, over all restarts."""
        return sum(self._seconds[activity] for activity in TRAINING)

    def write_row(self, row: dict[str, Any]) -> None:
        """Adds a row of metrics."""
        self.history.append(row)
        if self._metrics is not None:
            self._metrics.write(row)

    def save(self, step: int, state: TrainState) -> None:
        """Begins to save a checkpoint; earlier rows are on disk already."""
        if self._checkpoints is None:
            return
        run = {
            "step": step,
            "samples": self._plan.samples_at(step),
            "seed": self._seed,
            "plan": self._plan.to_dict(),
            "fingerprint": self._plan.fingerprint(self._plan.samples_at(step)),
            "examples_digest": str(self.examples),
            "seconds": {**self._seconds, "total": self.elapsed_seconds()},
            "phase_seconds": self._phase_seconds,
            "layout": self._layout,
            "restarts": self._restarts,
            "identity": self._identity,
            "metrics": dataclasses.asdict(self._metrics.position()),
        }
        self._checkpoints.save(step, state, run)

    def check(self) -> None:
        """Raises what a save in the background failed with."""
        if self._checkpoints is not None:
            self._checkpoints.check()

    def finish(self, state: TrainState, stopped: bool) -> dict[str, Any]:
        """Waits for the last checkpoint and, at the plan's end, writes the summary."""
        if self._workdir is not None and self._metrics is None:  # it was finished before
            return json.loads((self._workdir / "summary.json").read_text())
        if self._checkpoints is not None:
            with self.timed("checkpoint"):
                self._checkpoints.wait()
        summary = self._summary(state)
        if self._workdir is not None and not stopped:
            write_json(self._workdir / "summary.json", summary)
        return summary

    def _summary(self, state: TrainState) -> dict[str, Any]:
        last = self.history[-1] if self.history else {}
        measured = (
            key for key in last if key.startswith(("train_", "test_", "holdout_")) or key == "epoch"
        )
        step = int(state.step)
        return {
            "step": step,
            "samples": self._plan.samples_at(step),
            **{key: _finite_or_none(last[key]) for key in measured},
            "weights_digest": weights_digest(state),
            "examples_digest": str(self.examples),
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            **{f"{name}_seconds": self._seconds[name] for name in ACTIVITIES},
            "total_seconds": self.elapsed_seconds(),
            "phase_training_seconds": self._phase_seconds,
        }

    def close(self) -> None:
        """Closes the files, also after an error."""
        try:
            if self._checkpoints is not None:
                self._checkpoints.close()
        finally:
            if self._metrics is not None:
                self._metrics.close()


def _finite_or_none(value: Any) -> Any:
    """The value; None for what JSON has no number for, as in the rows on disk."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_past(run: Mapping[str, Any], plan: BatchPlan, seed: int, workdir: Path) -> None:
    """Raises a RestoreError unless a checkpoint's past is this plan's."""
    samples = run["samples"]
    if run["seed"] != seed:
        raise RestoreError(
            f"the run in {workdir} has seed {run['seed']}, not {seed}; use another workdir."
        )
    saved = BatchPlan.from_dict(run["plan"])
    if saved.num_examples != plan.num_examples or saved.remainder != plan.remainder:
        raise RestoreError(
            f"the run in {workdir} has {saved.num_examples} examples per epoch and "
            f"remainder={saved.remainder!r}, this one {plan.num_examples} and "
            f"{plan.remainder!r}; use another workdir."
        )
    if samples <= plan.num_samples and plan.fingerprint(samples) == run["fingerprint"]:
        return
    raise RestoreError(
        f"the run in {workdir} stands at sample {samples:,}, and {first_difference(saved, plan)}; "
        "the past of a schedule can't be edited: use another workdir."
    )


def first_difference(saved: BatchPlan, plan: BatchPlan) -> str:
    """Says where two plans part."""
    for ours, theirs in zip(plan.phases, saved.phases, strict=False):
        for name in ("start_sample", "batch_size", "start_step"):
            if getattr(ours, name) != getattr(theirs, name):
                return (
                    f"phase {ours.index} had {name} {getattr(theirs, name):,} there and has "
                    f"{getattr(ours, name):,} here"
                )
    return (
        f"its plan had {saved.num_samples:,} samples in {len(saved.phases)} phases and this one "
        f"has {plan.num_samples:,} in {len(plan.phases)}"
    )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one."""
    with storage_errors(path):
        write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")
