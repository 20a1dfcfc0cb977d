"""The benchmarks' own arithmetic, and that each runs; what they measure is nobody's assertion."""

import importlib.util
import itertools
import json
import math

import jax
import numpy as np
import pytest

from adabatch_jax import Layout, make_plan, models
from experiments.benchmarks import __main__ as command
from experiments.benchmarks import (
    loop_overhead,
    rows,
    running,
    sharded_parameters,
    timing,
    training,
)
from experiments.benchmarks.accelerator import measuring, peaks, text, workloads
from experiments.benchmarks.networks import Network, text_optimizer
from experiments.benchmarks.options import Options
from experiments.benchmarks.results import Results
from experiments.benchmarks.torch_process import TorchProcess, TorchUnavailable

MACHINE = {"devices": {"cpu": 1}, "cores": 2, "cpu": "x", "python": "3", "packages": {}}


def test_measures_take_turns_and_the_first_round_does_not_count():
    clock, calls = itertools.count(), []

    def measure(name):
        return lambda: calls.append(name) or float(next(clock))

    seconds = timing.alternate({"a": measure("a"), "b": measure("b")}, rounds=3)
    assert calls == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert seconds == {"a": [2.0, 5.0, 6.0], "b": [3.0, 4.0, 7.0]}


def test_a_limit_leaves_three_rounds():
    seconds = timing.alternate({"a": lambda: 1.0}, rounds=9, limit_seconds=0.0)
    assert seconds == {"a": [1.0, 1.0, 1.0]}


def test_a_ratio_is_the_median_of_the_rounds_not_the_ratio_of_medians():
    # A slow round slows both down: the medians' ratio would be 20 / 4 = 5.
    ratio = timing.ratio([20.0, 2.0, 300.0, 21.0, 8.0], [10.0, 1.0, 100.0, 7.0, 4.0])
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (rows.Target(at_least=0.8), 0.8, "ok"),
        (rows.Target(at_least=0.8), 0.6, "missed by 25 %"),
        (rows.Target(at_most=1.03), 1.03, "ok"),
        (rows.Target(at_least=0.9, at_most=1.1), 1.0, "ok"),
        (rows.Target(at_least=0.9, at_most=1.1), 0.45, "missed by 50 %"),
        (rows.Target(at_least=0.9, at_most=1.1), 2.2, "missed by 100 %"),
    ],
)
def test_verdicts(target, value, verdict):
    assert target.verdict(value) == verdict


def test_results_keep_what_was_measured_before(tmp_path):
    row = rows.Row("a / b", timing.Ratio(1.5, 1.0, 2.0), rows.Target(at_most=1), why_missed="Why.")
    entry = {"environment": MACHINE | {"command": "first"}, "rows": [row.to_dict()]}
    Results(tmp_path, "cpu").put("one", entry)
    other = {"environment": MACHINE | {"command": "second"}, "rows": []}
    results = Results(tmp_path, "cpu")
    results.put("two", other)
    assert json.loads(results.json_path.read_text()) == {"one": entry, "two": other}
    text = results.markdown_path.read_text()
    assert "| a / b | <= 1 | 1.5 (1 to 2) | missed by 50 % | Why. |" in text
    assert "* one: 1 x cpu; 2 cores of x. Python 3, . `first`" in text
    assert "* two: 1 x cpu; 2 cores of x. Python 3, . `second`" in text


def test_abstract_batches_look_like_batches():
    network = Network.create("cnn_digits", image_shape=(8, 8, 1), dtype="bfloat16")
    for shape in ((6,), (3, 2)):
        real = {n: (a.shape, a.dtype) for n, a in network.batch(*shape).items()}
        abstract = {n: (a.shape, a.dtype) for n, a in network.abstract_batch(*shape).items()}
        assert real == abstract
    images = network.host_batch(600)["image"]
    np.testing.assert_array_equal(images[256:512], images[:256])


def test_the_loop_and_what_does_without_it_take_turns(tmp_path):
    source = training.random_tokens(tmp_path, 1_000, sequence_length=8)
    module = models.create("gpt_nano", 256, width=8, num_layers=1, num_heads=1)
    network = training.Run(source, module, text_optimizer())
    plan = network.plan(2, "6st")
    assert plan.tokens_per_example == 8 and len(source) == 124
    bare, calls = loop_overhead.hand_written_updates(network, plan), []
    seconds = loop_overhead.compare(
        network, plan, 2, Layout(input="streaming"), {"bare": bare, "calls": calls.append}
    )
    assert {name: len(rounds) for name, rounds in seconds.items()} == {
        "loop": 2, "bare": 2, "calls": 2
    }  # fmt: skip
    assert calls == [2, 2, 2] and min(seconds["bare"] + seconds["loop"]) > 0


def test_every_benchmark_is_there():
    for name in running.BENCHMARKS:
        assert importlib.util.find_spec(f"experiments.benchmarks.{name}"), name


def test_a_benchmark_that_fails_is_a_row(monkeypatch, tmp_path):
    for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, "cpu")  # restored afterwards
    monkeypatch.setitem(running.BENCHMARKS, "nothing", 1)
    (row,) = running.run_apart("nothing", Options(), str(tmp_path))["rows"]
    assert row["verdict"] == "not measured"
    assert row["note"] == (
        "failed: ModuleNotFoundError: No module named 'experiments.benchmarks.nothing'"
    )


def test_an_unknown_benchmark_is_refused(capsys, tmp_path):
    assert command.main(["loop_overhed", "--out", str(tmp_path / "new")]) == 2
    assert "did you mean 'loop_overhead'?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_each_device_holds_an_eighth_and_what_cannot_be_divided():
    (row,) = sharded_parameters.run(Options(quick=True))
    assert 1 / 8 < row.ratio.value < 1 / 7 and row.verdict == "ok"


def test_a_missing_torch_is_said():
    with pytest.raises(TorchUnavailable, match="torch is not installed"):
        TorchProcess("/bin/false")


@pytest.mark.parametrize(
    ("example_bytes", "memory", "largest"),
    [(1, None, 512), (10**6, 10**9, 512), (10**6, 5 * 10**8, 256), (10**6, 1, 1)],
)
def test_the_largest_microbatch_takes_six_tenths_of_the_memory(example_bytes, memory, largest):
    workload = workloads.Workload("", "", (128, 512), example_bytes)
    assert workloads.largest_microbatch(workload, memory) == largest


def test_the_accelerators_benchmark_runs_without_one(tmp_path):
    run = measuring.Measuring(tmp_path, seconds=60, torch_python="/bin/false")
    run.run(quick=True)
    (json_path,) = tmp_path.glob("accelerator_*.json")
    results = json.loads(json_path.read_text())
    assert results["device_kind"] == jax.devices()[0].device_kind and not results["left_out"]
    (sweep,) = results["sweeps"]
    sizes = [(row["batch_size"], row["microbatch_size"]) for row in sweep["sizes"]]
    assert sizes == [(4, 4), (8, 4)]
    for row in sweep["sizes"]:
        assert row["examples_per_second"] == row["batch_size"] / row["update_seconds"]
    plan = make_plan("4 x2 every 20ep max 8", 50_000, "100ep", remainder="drop")
    seconds = {row["batch_size"]: row["update_seconds"] for row in sweep["sizes"]}
    expected = sum(phase.num_steps * seconds[phase.batch_size] for phase in plan.phases)
    assert sweep["paper"]["arms"]["adaptive"]["total_seconds"] == pytest.approx(expected)
    changes = [change["batch_size"] for change in sweep["short_run"]["changes"]]
    assert changes == [8] and sweep["short_run"]["recompiled"]["batch_size"] == 8
    assert sweep["example_flops"] > 3 * 2 * 512 * 10  # what the last layer takes, three passes
    (row,) = results["text"]
    assert row["tokens_per_second"] == 2 * 16 / row["update_seconds"]
    weights = 4 * 12 * 64**2 + 9 * 64 + 256 * 64  # the blocks', the norms', the head's
    flops = 2 * 16 * (6 * weights + 12 * 4 * 64 * 16)
    assert row["model_flops_per_second"] == pytest.approx(flops / row["update_seconds"])
    assert row["model_flop_utilisation"] is None and "| gpt_nano |" in run.markdown_path.read_text()
    assert "## digits CNN, float32" in run.markdown_path.read_text()


def test_a_batch_that_does_not_fit_is_followed_by_a_smaller_one(monkeypatch):
    def measure(workload, attention, batch_size, *_):
        if batch_size > 16:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nand more")
        return {"batch_size": batch_size}

    monkeypatch.setattr(text, "_measure", measure)
    notes = []
    peak = peaks.peak_of("NVIDIA H100 80GB HBM3")
    found = list(text.measured(text.GPT_124M, peak, 0.1, math.inf, notes.append))
    assert found == [{"batch_size": 16}]
    assert notes[0] == "gpt_124m, xla, batch 64: RuntimeError: RESOURCE_EXHAUSTED: Out of memory"
    assert len(notes) == 2


def test_what_there_is_no_time_for_is_said(tmp_path):
    run = measuring.Measuring(tmp_path, seconds=0, torch_python="/bin/false")
    run.run()
    (json_path,) = tmp_path.glob("accelerator_*.json")
    results = json.loads(json_path.read_text())
    assert len(results["left_out"]) == 10 and not results["sweeps"]
    assert results["pytorch_note"] == "torch is not installed"
    assert "gpt_124m, xla, batch 64: no time" in results["left_out"]
    assert "* ResNet-20, bfloat16: no time" in run.markdown_path.read_text()
