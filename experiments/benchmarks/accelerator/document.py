"""What was measured on an accelerator, as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmarks.results import machine_text
from experiments.benchmarks.timing import Ratio


def page(results: Mapping[str, Any]) -> str:
    """The page of `accelerator_<device>.json`.

    >>> print(page({"device_kind": "cpu", "environment": {"devices": {"cpu": 1}, "cores": 2,
    ...     "cpu": "some", "python": "3.12", "packages": {}, "command": "python"}}).splitlines()[0])
    # Benchmarks on cpu
    """
    parts = [f"# Benchmarks on {results['device_kind']}", machine_text(results["environment"])]
    if peak := results.get("peak"):
        parts.append(
            f"Model FLOP utilisation counts XLA's FLOPs of a program without loops, of a GPT the "
            f"model's (6 for each weight and token, and attention's), against "
            f"{peak['bfloat16'] / 1e12:g} TFLOP/s in bfloat16 and {peak['float32'] / 1e12:g} in "
            f"float32 ({peak['source']})."
        )
    for sweep in results.get("sweeps", ()):
        parts += [f"## {sweep['network']}, {sweep['dtype']}", _sweep_table(sweep)]
        if table := sweep.get("paper"):
            parts += _paper(table)
        if run := sweep.get("short_run"):
            parts += _short_run(run)
    if rows := results.get("text"):
        parts += ["## Language models", _text_table(rows)]
    if rows := results.get("training_loop"):
        parts += ["## Training loop", _loop_table(rows)]
    if rows := results.get("pytorch"):
        parts += [f"## PyTorch {results['torch']}", _pytorch_table(rows, results["sweeps"])]
    elif note := results.get("pytorch_note"):
        parts += ["## PyTorch", f"{note}."]
    if notes := results.get("left_out"):
        parts += ["## Left out", "\n".join(f"* {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def _sweep_table(sweep: Mapping[str, Any]) -> str:
    header = (
        "batch",
        "micro-batch",
        "ms per update",
        "examples/s",
        "utilisation",
        "temporaries",
        "peak of the process",
        "compiled in",
    )
    rows = [
        (
            f"{row['batch_size']:,}",
            f"{row['microbatch_size']:,}",
            f"{1e3 * row['update_seconds']:.3g}",
            f"{row['examples_per_second']:,.0f}",
            _percent(row["model_flop_utilisation"]),
            _mebibytes(row["temporary_bytes"]),
            _mebibytes(row["process_peak_bytes"]),
            f"{row['compile_seconds']:.1f} s",
        )
        for row in sweep["sizes"]
    ]
    return _table(header, rows)


def _paper(table: Mapping[str, Any]) -> list[str]:
    arms = [
        (name, f"{arm['updates']:,}", f"{arm['total_seconds']:,.1f}")
        for name, arm in table["arms"].items()
    ]
    phases = [
        (
            f"{phase['batch_size']:,}",
            f"{phase['updates']:,}",
            f"{phase['phase_seconds']:,.1f}",
            f"{phase['speedup']:.2f}" + ("" if phase["is_measured"] else " (fitted)"),
        )
        for phase in table["phases"]
    ]
    return [
        f"The paper's table ({table['schedule']}; 50,000 examples, 100 epochs), computed from the "
        f"seconds per update above: the adaptive batches are **{table['speedup']:.2f} times** as "
        "fast as the fixed small one.",
        _table(("arm", "updates", "seconds"), arms),
        _table(("phase's batch", "updates", "seconds", "speed-up over the small batch"), phases),
    ]


def _short_run(run: Mapping[str, Any]) -> list[str]:
    if "error" in run:
        return [f"No run through the schedule: {run['error']}."]
    text = (
        f"A run of {run['updates']:,} updates through the schedule took "
        f"{run['measured_seconds']:.2f} s, predicted were {run['predicted_seconds']:.2f} s "
        f"(predicted / measured {run['predicted_over_measured']:.3f}). Stall at a change of "
        "phase, in updates of the new phase:"
    )
    rows = [
        (f"to {change['batch_size']:,}", f"{change['stall_in_updates']:.2f}")
        for change in run["changes"]
    ]
    if again := run.get("recompiled"):
        rows.append(
            (
                f"to {again['batch_size']:,}, compiled by `jax.jit` when it comes "
                f"({again['first_update_seconds']:.1f} s)",
                f"{again['stall_in_updates']:,.0f}",
            )
        )
    return [text, _table(("change", "stall"), rows)]


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "network", "type", "attention", "batch", "ms per update", "tokens/s", "model TFLOP/s",
        "utilisation", "peak of the process", "compiled in",
    )  # fmt: skip
    cells = [
        (
            row["network"],
            row["dtype"],
            row["attention"],
            f"{row['batch_size']} x {row['sequence_length']:,}",
            f"{1e3 * row['update_seconds']:.3g}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['model_flops_per_second'] / 1e12:.3g}",
            _percent(row["model_flop_utilisation"]),
            _mebibytes(row["process_peak_bytes"]),
            f"{row['compile_seconds']:.1f} s",
        )
        for row in rows
    ]
    return _table(header, cells)


def _loop_table(rows: Sequence[Mapping[str, Any]]) -> str:
    return _table(
        ("what", "updates a round", "compiled updates alone / loop (quartiles)"),
        [(row["what"], str(row["updates"]), str(Ratio(**row["ratio"]))) for row in rows],
    )


def _pytorch_table(rows: Sequence[Mapping[str, Any]], sweeps: Sequence[Mapping[str, Any]]) -> str:
    ours = {
        (sweep["network"], sweep["dtype"], size["batch_size"]): size["examples_per_second"]
        for sweep in sweeps
        for size in sweep["sizes"]
    }
    cells = []
    for row in rows:
        mine = ours.get((row["network"], row["dtype"], row["batch_size"]))
        theirs = row.get("examples_per_second")
        cells.append(
            (
                row["network"],
                row["dtype"],
                f"{row['batch_size']:,}",
                row["mode"],
                row.get("error") or f"{theirs:,.0f}",
                "" if mine is None else f"{mine:,.0f}",
                "" if mine is None or theirs is None else f"{mine / theirs:.2f}",
            )
        )
    header = ("network", "type", "batch", "PyTorch's mode", "its examples/s", "ours", "ratio")
    return _table(header, cells)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _mebibytes(num_bytes: int | None) -> str:
    return "" if num_bytes is None else f"{num_bytes / 2**20:,.0f} MiB"
