"""Rows of metrics: what is known of one before its updates are computed, and after."""

import collections
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from adabatch_jax.data.example_digest import Share
from adabatch_jax.data.feeds import Piece
from adabatch_jax.runs.display.progress import Progress
from adabatch_jax.runs.due import Due
from adabatch_jax.runs.folder.metrics_files import COLUMNS
from adabatch_jax.runs.record import RunRecord


class Rows:
    """Makes the rows of a run, and gives them to its record and to who watches it.

    Args:
      record: the run's record.
      due: where a row is due.
      learning_rate: what to log as such, or None.
      progress: who watches.
    """

    def __init__(
        self,
        record: RunRecord,
        due: Due,
        learning_rate: optax.Schedule | None,
        progress: Progress,
    ):
        self._record, self._due = record, due
        self._learning_rate, self._progress = learning_rate, progress
        self._next = due.next_row(record.start_step)
        self._pace = _Pace(record.plan.samples_at(record.start_step))

    def due_in(self, piece: Piece, digest_shares: Sequence[Share]) -> list[dict[str, Any]]:
        """Takes note of a piece's examples; returns what is known of the rows that are due in it.

        Those of evaluations aren't among them.

        Args:
          piece: one that was dispatched, whose last update ends with it.
          digest_shares: what each of its updates adds to the digest of examples.
        """
        rows = []
        for step, share in zip(piece.steps, digest_shares, strict=True):
            self._record.examples.add(share)
            if step.index + 1 == self._next:
                if not self._due.is_evaluation(self._next):
                    rows.append(self.begin(self._next))
                self._next = self._due.next_row(self._next)
        return rows

    def begin(self, finished: int) -> dict[str, Any]:
        """What is known of a row before its updates are computed."""
        plan = self._record.plan
        row: dict[str, Any] = {"step": finished, "samples": plan.samples_at(finished)}
        if plan.tokens_per_example is not None:
            row["tokens"] = row["samples"] * plan.tokens_per_example
        if plan.num_examples is not None:
            row["epoch"] = row["samples"] / plan.num_examples
        phase = plan.phase_at(finished - 1)
        row |= {"phase": phase.index, "batch_size": phase.batch_size}
        if self._learning_rate is not None:
            row["learning_rate"] = self._rate(finished - 1)
        return row | {"examples_digest": str(self._record.examples)}

    def with_metrics(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the means of the metrics since the row before, which begin anew."""
        means = self._record.means.take()
        return {**row, **{f"train_{name}": mean for name, mean in means.items()}}

    def seconds(self, samples: int) -> dict[str, float]:
        """What the clocks say when so many samples are trained on."""
        speed, tokens = (
            self._pace.examples_per_second(samples),
            self._record.plan.tokens_per_example,
        )
        seconds = {
            "training_seconds": self._record.clocks.training_seconds(),
            "elapsed_seconds": self._record.clocks.elapsed_seconds(),
            "examples_per_second": speed,
        }
        return seconds if tokens is None else {**seconds, "tokens_per_second": speed * tokens}

    def write(self, row: Mapping[str, Any], seconds: Mapping[str, float] | None = None) -> None:
        """Writes a row; its seconds are those of now, where they weren't taken before."""
        row = {**row, **(self.seconds(row["samples"]) if seconds is None else seconds)}
        row = {key: row[key] for key in (*COLUMNS, *row) if key in row}
        self._record.write_row(row)
        self._progress.log(row)

    def restart(self, samples: int) -> None:
        """Counts the pace from here on: what came before was no training."""
        self._pace.restart(samples)

    def rate_text(self, step: int) -> str:
        """The learning rate of an update, to be added to a sentence; "" where it isn't known."""
        return "" if self._learning_rate is None else f", lr {self._rate(step):.6g}"

    def _rate(self, step: int) -> float:
        # On the host: a device would first finish the updates that were dispatched.
        with jax.transfer_guard("allow"), _on_cpu():
            return float(self._learning_rate(step))


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the user allowed accelerators only
        device = None
    with jax.default_device(device):
        yield


class _Pace:
    """Examples per second since the last row, evaluation left out."""

    def __init__(self, samples: int):
        self._marks = collections.deque([(samples, time.monotonic())], maxlen=3)

    def restart(self, samples: int) -> None:
        self._marks.clear()
        self._marks.append((samples, time.monotonic()))

    def examples_per_second(self, samples: int) -> float:
        now, marks = time.monotonic(), self._marks
        # Soon after a row another one would tell about a single update: it reaches further back.
        is_soon = len(marks) > 1 and now - marks[-1][1] < (marks[-1][1] - marks[-2][1]) / 2
        first, since = marks[-2] if is_soon else marks[-1]
        marks.append((samples, now))
        return (samples - first) / max(now - since, 1e-9)
