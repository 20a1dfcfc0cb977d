"""The parts in order of importance, each with its time; results are written after every step."""

import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from adabatch_jax.config.settings import Layout
from adabatch_jax.system.environment import describe_environment
from experiments.benchmarks.accelerator import paper, pytorch, short_run, text, workloads
from experiments.benchmarks.accelerator.document import page
from experiments.benchmarks.accelerator.peaks import peak_of
from experiments.benchmarks.accelerator.sweep import Sweep, first_line
from experiments.benchmarks.accelerator.workloads import Workload
from experiments.benchmarks.loop_overhead import compare, compiled_updates
from experiments.benchmarks.results import write
from experiments.benchmarks.timing import ratio
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable
from experiments.benchmarks.training import random_images, resnet20

# Seconds after which a part begins nothing new.
_SWEEP_SECONDS, _TORCH_SECONDS = 75.0, 90.0
_LOOP_SECONDS, _LOOP_BATCH_SIZE = 60.0, 128
_TEXT_SECONDS = 120.0
_UPDATES_SECONDS, _RUN_SECONDS = 0.3, 4.0


class Measuring:
    """One benchmark of an accelerator.

    Args:
      folder: of the results.
      seconds: after which nothing new is begun.
      torch_python: a Python that has torch; None: this one.
    """

    def __init__(self, folder: Path, seconds: float, torch_python: str | None):
        folder.mkdir(parents=True, exist_ok=True)
        device = jax.devices()[0]
        name = re.sub(r"[^a-z0-9]+", "_", device.device_kind.lower()).strip("_")
        self._json_path = folder / f"accelerator_{name}.json"
        self.markdown_path = folder / f"accelerator_{name}.md"
        self._end, self._torch_python = time.monotonic() + seconds, torch_python
        self._peak = peak_of(device.device_kind)
        self._results: dict[str, Any] = {
            "device_kind": device.device_kind,
            "environment": describe_environment(d.device_kind for d in jax.devices()),
            "peak": None if self._peak is None else dataclasses.asdict(self._peak),
            "sweeps": [],
            "text": [],
            "training_loop": [],
            "pytorch": [],
            "left_out": [],
        }

    def run(self, quick: bool = False) -> None:
        """Measures as much as there is time for."""
        if quick:
            self._try("quick", self._sweep, workloads.QUICK, "float32", 0.02, 0.1)
            self._try("text", self._text, text.QUICK, 0.02)
            return
        first, *others = (
            workloads.RESNET20,
            workloads.VGG19_BN,
            workloads.ALEXNET,
            workloads.RESNET50,
        )
        for dtype in ("bfloat16", "float32"):
            self._try(f"{first.title}, {dtype}", self._sweep, first, dtype)
        self._try("text", self._text, text.GPT_124M, 2.0)
        self._try("training loop", self._training_loop, "bfloat16", 7, 300)
        self._try("PyTorch", self._pytorch, [first], ("bfloat16", "float32"))
        for dtype in ("bfloat16", "float32"):
            for workload in others:
                self._try(f"{workload.title}, {dtype}", self._sweep, workload, dtype)
        self._try("PyTorch", self._pytorch, others, ("bfloat16",))

    def _try(self, what: str, part: Callable[..., None], *arguments: Any) -> None:
        try:
            part(*arguments)
        except Exception as error:  # the other parts are worth having
            self._leave_out(f"{what}: {type(error).__name__}: {first_line(error)}")

    def _sweep(
        self,
        workload: Workload,
        dtype: str,
        updates_seconds: float = _UPDATES_SECONDS,
        run_seconds: float = _RUN_SECONDS,
    ) -> None:
        deadline = self._deadline(_SWEEP_SECONDS)
        what = f"{workload.title}, {dtype}"
        if deadline <= time.monotonic():
            self._leave_out(f"{what}: no time")
            return
        sweep = Sweep(workload, dtype, self._peak)
        rows: list[dict[str, Any]] = []
        result = {"network": workload.title, "dtype": dtype, "sizes": rows}
        result["example_flops"] = sweep.example_flops
        self._results["sweeps"].append(result)
        sweep.compile(deadline)
        for size in workload.batch_sizes:
            if reason := sweep.failures.get(size):
                self._leave_out(f"{what}, batch {size:,}: {reason}")
                continue
            try:
                rows.append(sweep.measure(size, updates_seconds))
            except jax.errors.JaxRuntimeError as error:  # no memory, above all
                self._leave_out(f"{what}, batch {size:,}: {first_line(error)}")
                sweep.restart()
            self._save(f"{what}, batch {size:,}")
        seconds = {row["batch_size"]: row["update_seconds"] for row in rows}
        if workload.schedule is None or not seconds:
            return
        result["paper"] = paper.single_device_table(workload.schedule, seconds)
        if deadline > time.monotonic():
            result["short_run"] = run = short_run.run_through(sweep, seconds, run_seconds)
            self._save(f"{what}, a run through its schedule")
            if len(self._results["sweeps"]) == 1 and "error" not in run:
                size = run["changes"][0]["batch_size"]
                run["recompiled"] = short_run.recompilation(sweep, size, seconds[size])
        self._save(f"{what}, done")

    def _text(self, workload: text.TextWorkload, updates_seconds: float) -> None:
        deadline = self._deadline(_TEXT_SECONDS)
        for row in text.measured(workload, self._peak, updates_seconds, deadline, self._leave_out):
            self._results["text"].append(row)
            self._save(f"{workload.model}, {row['attention']}, batch {row['batch_size']}")

    def _training_loop(self, dtype: str, num_rounds: int, num_updates: int) -> None:
        """The loop's updates against the same program alone, in turns."""
        what = f"training loop, ResNet-20, {dtype}, batch {_LOOP_BATCH_SIZE}, resident"
        if self._end - time.monotonic() < _LOOP_SECONDS:
            self._leave_out(f"{what}: no time")
            return
        training = resnet20(random_images(50_000), group_size=None, dtype=dtype)
        plan = training.plan(_LOOP_BATCH_SIZE, f"{num_updates * (num_rounds + 1)}st")
        resident = Layout(input="resident")
        alone = {"bare": compiled_updates(training, plan, resident)}
        seconds = compare(training, plan, num_updates, resident, alone)
        bare, in_loop = seconds["bare"], seconds["loop"]
        loop = {"what": what, "ratio": dataclasses.asdict(ratio(bare, in_loop))}
        loop |= {"updates": num_updates, "bare_seconds": bare, "loop_seconds": in_loop}
        self._results["training_loop"].append(loop)
        self._save(what)

    def _pytorch(self, chosen: Sequence[Workload], dtypes: Sequence[str]) -> None:
        deadline = self._deadline(_TORCH_SECONDS)
        try:
            with TorchProcess(self._torch_python) as torch:
                self._results["torch"] = torch.description["torch"]
                for mode, workload, dtype in itertools.product(pytorch.MODES, chosen, dtypes):
                    what = f"PyTorch, {workload.title}, {dtype}, {mode}"
                    if time.monotonic() > deadline or not torch.is_alive:
                        self._leave_out(f"{what}: no time")
                        continue
                    for size in _sizes_for_pytorch(workload):
                        row = pytorch.measure(torch, workload, size, dtype, mode, deadline)
                        self._results["pytorch"].append({"network": workload.title, **row})
                        self._save(f"{what}, batch {size}")
                    if torch.is_alive:
                        torch.forget()
        except TorchUnavailable as error:
            self._results["pytorch_note"] = str(error)
            self._save(f"PyTorch: {error}")

    def _deadline(self, seconds: float) -> float:
        return min(self._end, time.monotonic() + seconds)

    def _leave_out(self, note: str) -> None:
        self._results["left_out"].append(note)
        self._save(note)

    def _save(self, what: str) -> None:
        print(what, flush=True)
        write(self._json_path, json.dumps(self._results, indent=1) + "\n")
        write(self.markdown_path, page(self._results))


def _sizes_for_pytorch(workload: Workload) -> tuple[int, ...]:
    """The smallest and the largest batch of the paper on one device."""
    return (128,) if workload.schedule is None else (128, 2048)
