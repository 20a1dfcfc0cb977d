"""`python -m experiments.reproduce`: whole studies of tiny runs, resumed, refused and reported."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from adabatch_jax.config import DataSettings, TrainConfig
from adabatch_jax.config.gpt_settings import GPTSettings
from adabatch_jax.schedules.learning_rate_schedule import coupled_learning_rate
from experiments import sections
from experiments.reproduce import main
from experiments.reproduction import studies
from experiments.reproduction.adjustments import with_epochs
from experiments.reproduction.jobs import study_jobs
from experiments.reproduction.resuming import resumed
from experiments.reproduction.tuning import best_scale, holdout_outcome
from tests.sentences import says

TINY = TrainConfig(lr="0.05", epochs=2, reference_batch_size=400, log_every="1ep")
ARMS = {
    "fixed_small": dataclasses.replace(TINY, batch_schedule="400"),
    "adaptive": dataclasses.replace(TINY, batch_schedule="500, 8ep: 800"),  # one program, one phase
    "hopeless": dataclasses.replace(TINY, batch_schedule="400", lr="1e30"),
}
SECTION = sections.Section("A tiny section", "nowhere", {"cnn": "tiny_cnn"})


@pytest.fixture(scope="module", autouse=True)
def tiny_section():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sections.SECTIONS, "tiny", SECTION)
        for name in ("device_count", "local_device_count"):
            patch.setattr(jax, name, lambda *_: 1)  # programs for eight take longer
        load = sections.load_arms
        patch.setattr(sections, "load_arms", lambda e: ARMS if e == "tiny_cnn" else load(e))
        for module in ("pages", "results"):
            name = f"experiments.reproduction.{module}"
            __import__(name)
            patch.setattr(sys.modules[name], "load_arms", sections.load_arms, raising=False)
        pages = sys.modules["experiments.reproduction.pages"]
        patch.setattr(pages, "png", lambda figure: b"")  # tested elsewhere
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """An uninterrupted study of three arms and two seeds."""
    out = tmp_path_factory.mktemp("study") / "out"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["tiny", "--seeds", "2", "--out", str(out)]) == 0
    (out.parent / "said").write_text(said.getvalue())
    return out


def figures(out):
    """All that isn't a time, and doesn't say where it was measured."""
    content = json.loads((out / "results.json").read_text())
    del content["command"], content["environments"]
    return _timeless(content)


def _timeless(value):
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _timeless(item)
        for key, item in value.items()
        if "seconds" not in key and "speed" not in key and key != "sentences"
    }


def runs(out):
    return sorted(str(path.parent.relative_to(out)) for path in out.glob("**/summary.json"))


def saved(out):
    return json.loads((out / "study.json").read_text())


def test_a_study_is_run_and_reported(study):
    assert runs(study) == [
        f"runs/tiny_cnn/{arm}/seed{seed}" for arm in ("adaptive", "fixed_small") for seed in (0, 1)
    ]
    content = saved(study)
    assert content["seeds"] == [0, 1] and content["section"] == "tiny"
    assert list(content["arms"]["tiny_cnn"]) == ["fixed_small", "adaptive", "hopeless"]
    for arm, config in content["arms"]["tiny_cnn"].items():
        assert config["batch_schedule"] == ARMS[arm].batch_schedule
        assert config["data"]["train_split"] == "train[:90%]"
        assert config["data"]["holdout_split"] == "train[90%:]"
    for seed in (0, 1):
        folder = study / f"runs/tiny_cnn/adaptive/seed{seed}"
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
        assert json.loads((folder / "summary.json").read_text())["samples"] == 2 * 1298
    assert {"results.md", "results.html"} <= {path.name for path in study.iterdir()}


def test_a_missing_text_is_told_with_where_it_comes_from(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    refused(capfd, ["language_model"], "'kjv.txt' … bible -f … kjv.txt … --dataset text:FILE")
    refused(capfd, ["language_model", "--dataset", "text:no.txt"], "no.txt' of text.")


def test_a_study_of_a_text(tmp_path, monkeypatch, capfd):
    """Tuned, run, and reported by bits per byte."""
    text = tmp_path / "corpus.txt"
    text.write_text("".join(f"{n} green bottles, hanging on the wall.\n" for n in range(200)))
    config = TrainConfig(
        dataset="text:corpus.txt", model="gpt_nano", optimizer="adamw", coupling="sqrt", epochs=1,
        lr="0.01", batch_schedule="32", log_every="1ep", eval_every="50%",
        data=DataSettings(sequence_length=16, test_split="10%"),
        gpt=GPTSettings(width=8, num_layers=1, num_heads=2),
    )  # fmt: skip
    arms = {"fixed_small": config}
    section = sections.Section(
        "A text", "nowhere", {"gpt": "tiny_gpt"}, "bits_per_byte", findings=("For: nobody.",)
    )
    monkeypatch.setitem(sections.SECTIONS, "tiny_text", section)
    for module in (sections, sys.modules["experiments.reproduction.pages"]):
        monkeypatch.setattr(module, "load_arms", lambda experiment: arms)
    out = tmp_path / "out"
    command = ["tiny_text", "--seeds", "1", "--tune-lr", "--lr-scales", "0.01", "1"]
    command += ["--dataset", f"text:{text}", "--out", str(out)]
    assert main(command) == 0
    study = saved(out)
    found = study["tuning"]["tiny_gpt"]["fixed_small"]
    for scale, value in found["candidates"].items():
        summary = out / f"tuning/tiny_gpt/fixed_small/lr_x{scale}/summary.json"
        assert value == json.loads(summary.read_text())["holdout_bits_per_byte"]
    assert found["lr_scale"] == 1  # a hundredth of the rate learns next to nothing
    assert study["arms"]["tiny_gpt"]["fixed_small"]["data"]["holdout_split"] == "10%"
    assert study["outcome"] == "bits_per_byte" and study["margin"] == 0.01
    page = (out / "results.md").read_text()
    result = json.loads((out / "runs/tiny_gpt/fixed_small/seed0/summary.json").read_text())
    assert f"{result['test_bits_per_byte']:.3f}" in page and "For: nobody." in page
    assert "test bits per byte" in page and "test error" not in page
    assert "test bits per byte" in capfd.readouterr().out


def test_a_run_that_diverges_is_a_result(study):
    for seed in (0, 1):
        folder = study / f"runs/tiny_cnn/hopeless/seed{seed}"
        failure = json.loads((folder / "failure.json").read_text())
        assert failure["kind"] == "diverged" and "after update" in failure["message"]
        assert not (folder / "summary.json").exists()


def times_of_runs(out):
    return {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}


def test_the_same_command_runs_nothing_again(study, capfd):
    before, times = figures(study), times_of_runs(study)
    assert main(["tiny", "--seeds", "2", "--out", str(study)]) == 0
    assert "6 of them over already" in capfd.readouterr().out
    assert figures(study) == before and times_of_runs(study) == times


def test_only_report_runs_nothing(study, tmp_path, capfd):
    shutil.copytree(study, tmp_path / "out")
    (tmp_path / "out" / "results.md").unlink()
    times = times_of_runs(tmp_path / "out")
    assert main(["tiny", "--only-report", "--out", str(tmp_path / "out")]) == 0
    assert "results.md" in capfd.readouterr().out
    assert figures(tmp_path / "out") == figures(study)
    assert times_of_runs(tmp_path / "out") == times
    refused(capfd, ["digits", "--only-report", "--out", str(tmp_path / "out")], "tiny … digits")


def test_damaged_figures_are_computed_again(study, tmp_path, capfd):
    shutil.copytree(study, tmp_path / "out")
    damaged = tmp_path / "out/runs/tiny_cnn/adaptive/seed1/summary.json"
    before = json.loads(damaged.read_text())
    damaged.write_text("{}")
    arguments = ["tiny", "--seeds", "2", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--only-report"]) == 5
    assert "summary.json" in capfd.readouterr().err
    assert main(arguments) == 0
    assert "5 of them over already" in capfd.readouterr().out
    assert json.loads(damaged.read_text())["weights_digest"] == before["weights_digest"]
    assert figures(tmp_path / "out") == figures(study)
    (tmp_path / "out/runs/tiny_cnn/hopeless/seed0/failure.json").write_text("{}")
    assert main(arguments) == 5
    assert "failure.json" in capfd.readouterr().err


def test_a_signal_stops_and_the_same_command_goes_on(study, tmp_path, capfd, faults):
    shutil.copytree(study, tmp_path / "out")
    for folder in (tmp_path / "out").glob("runs/*/*/seed1"):
        shutil.rmtree(folder)
    arguments = ["tiny", "--seeds", "2", "--out", str(tmp_path / "out")]
    faults("step.end:2:sigterm")
    assert main(arguments) == 143
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM") and last.endswith(" ".join(arguments))
    begun = [path.parent.name for path in (tmp_path / "out").glob("runs/*/*/seed1")]
    assert begun == ["fixed_small"]
    faults("")
    assert main(arguments) == 0
    out, _ = capfd.readouterr()
    assert "3 of them over already" in out
    lines = [line.split()[4:7] for line in out.splitlines() if line.startswith("run ")]
    assert lines == [f"{arm} seed 1".split() for arm in ARMS]
    assert figures(tmp_path / "out") == figures(study)


def test_a_line_for_each_run(study):
    said = (study.parent / "said").read_text().splitlines()
    assert "3 arms x 2 seeds = 6 runs of 2 epochs" in said[0] and str(study) in said[0]
    lines = said[1:7]
    assert [line.split()[:7] for line in lines] == [
        f"run {3 * seed + n} of 6 {arm} seed {seed}".split()
        for seed in (0, 1)
        for n, arm in enumerate(ARMS, 1)
    ]
    assert " %  " in lines[0] and " 7 updates " in lines[0] and lines[0].endswith(" left")
    assert "diverged: the loss is" in lines[2]
    assert "results.html" in said[7] and len(said) == 9


def test_more_seeds_go_on_with_a_study(study):
    before = studies.load_study(study)
    more = studies.make_study("tiny", num_seeds=3, command="more")
    going_on = resumed(before, more, study, lr_scales=())
    left = [job for job in study_jobs(going_on, study) if not job.is_over]
    assert [(job.arm, job.config.seed) for job in left] == [(arm, 2) for arm in ARMS]


def test_settings_of_all_arms():
    changed = studies.make_study(
        "tiny", num_seeds=1, holdout_percent=0, arms=["adaptive"], epochs=1,
        overrides={"microbatch_size": 100},
    )  # fmt: skip
    ((_, arm, config),) = changed.items()
    assert arm == "adaptive" and config.batch_schedule == "500, 4ep: 800"
    assert config.epochs == 1 and config.microbatch_size == 100
    assert config.data == TINY.data
    assert studies.Study.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


@pytest.mark.slow
def test_rates_are_chosen_on_the_held_out_part(tmp_path, capfd):
    out = tmp_path / "out"
    arguments = ["tiny", "--seeds", "1", "--arms", "fixed_small", "--out", str(out)]
    tuning = ["--tune-lr", "--lr-scales", "2", "0.0001"]
    assert main([*arguments, *tuning]) == 0
    assert "tuning run 2 of 2" in capfd.readouterr().out
    (finding,) = saved(out)["tuning"]["tiny_cnn"].values()
    folder = out / "tuning" / "tiny_cnn" / "fixed_small"
    measured = {
        path.parent.name.removeprefix("lr_x"): json.loads(path.read_text())["holdout_accuracy"]
        for path in folder.glob("*/summary.json")
    }
    assert list(finding["candidates"]) == ["0.0001", "2"]
    assert measured["2"] > measured["0.0001"]
    assert finding["lr_scale"] == 2.0
    assert finding["candidates"]["2"] == pytest.approx(100 * (1 - measured["2"]))
    assert saved(out)["arms"]["tiny_cnn"]["fixed_small"]["lr"] == "0.1"
    config = json.loads((out / "runs/tiny_cnn/fixed_small/seed0/config.json").read_text())
    assert config["lr"] == "0.1"
    assert json.loads((folder / "lr_x2" / "config.json").read_text())["seed"] not in range(1000)

    before = figures(out)
    assert main([*arguments, *tuning]) == 0
    assert figures(out) == before
    for others in ([], ["--tune-lr"]):
        assert main([*arguments, *others]) == 2
        assert "--tune-lr --lr-scales 0.0001 2" in capfd.readouterr().err


def test_equally_good_rates_go_to_the_smaller_and_one_that_diverged_is_the_worst(study):
    errors = {job.arm: holdout_outcome(job) for job in study_jobs(studies.load_study(study), study)}
    assert errors["hopeless"] is None and 0 <= errors["fixed_small"] < 100
    assert best_scale({"2": 1.5, "1": 1.5, "0.5": 1.6}) == 1.0
    assert best_scale({"0.5": None, "2": 99.0}) == 2.0
    assert best_scale({"2": None, "0.5": None}) == 0.5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("tny", "'tny' … 'tiny'"),
        ("tiny --arms adaptve", "'adaptve' … 'adaptive'"),
        ("tiny --networks resnet", "'resnet' … cnn"),
        ("tiny --seeds 0", "--seeds: … 1 … 10000 … 0"),
        ("tiny --holdout-percent 100", "--holdout-percent: … 100"),
        ("tiny --margin 0", "--margin: … 0"),
        ("tiny --margin nan", "--margin: … nan"),
        ("tiny --dataset digts", "'digts' … 'digits'"),
        ("tiny --epochs 0", "--epochs: … 0"),
        ("tiny --holdout-percent 70", "tiny_cnn/adaptive: "),
        ("tiny --compute-dtype float8", "compute_dtype: 'float8'"),
        ("tiny --tune-lr --holdout-percent 0", "--holdout-percent"),
        ("tiny --tune-lr --lr-scales 1", "--lr-scales: "),
        ("tiny --tune-lr --lr-scales 1 -1", "--lr-scales: "),
        ("tiny --sead 3", "--sead … '--seeds'"),
        ("", "SECTION"),
        ("tiny --only-report", "--only-report: "),
    ],
)
def test_mistakes(capfd, tmp_path, arguments, text):
    refused(capfd, [*arguments.split(), "--out", str(tmp_path / "out")], text)
    assert not (tmp_path / "out").exists()


def refused(capfd, arguments, text):
    capfd.readouterr()
    assert main(arguments) == 2
    _, err = capfd.readouterr()
    (said,) = err.strip().splitlines()
    assert said.startswith("error: ") and said[-1] in ".?" and re.search(says(text), said)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("--seeds 1", "seeds 2, not 1"),
        ("--holdout-percent 20", "holdout_percent 10, not 20"),
        ("--margin 0.5", "margin 1.0, not 0.5"),
        ("--arms adaptive fixed_small", "tiny_cnn/fixed_small, tiny_cnn/adaptive, "),
        ("--epochs 3", "tiny_cnn/fixed_small epochs 2.0, not 3.0"),
        ("--microbatch-size 64", "tiny_cnn/fixed_small microbatch_size 'auto', not 64"),
        ("--tune-lr", "--tune-lr: "),
    ],
)
def test_other_settings_in_the_same_folder(study, capfd, arguments, text):
    before = (study / "study.json").read_bytes()
    refused(capfd, ["tiny", "--seeds", "2", "--out", str(study), *arguments.split()], text)
    assert (study / "study.json").read_bytes() == before


def test_a_foreign_folder(capfd, tmp_path):
    (tmp_path / "thesis.tex").touch()
    refused(capfd, ["tiny", "--out", str(tmp_path)], "--out: … 'thesis.tex'")
    refused(capfd, ["tiny", "--out", str(tmp_path / "thesis.tex")], "--out: … thesis.tex")


def by_epoch(config, num_examples=50_000):
    """(batch, rate) at the first step that begins in each epoch."""
    plan = config.plan(num_examples)
    rate = coupled_learning_rate(
        plan, config.learning_rate, config.coupling, config.reference_batch_size
    )
    firsts = {}
    for step in plan.steps():
        firsts.setdefault(step.start_sample // plan.num_examples, step)
    return [(step.batch_size, float(rate(step.index))) for _, step in sorted(firsts.items())]


@pytest.mark.parametrize("arm", ["fixed_small", "adaptive", "smith", "sqrt"])
def test_shorter_runs_have_the_whole_schedule(arm):
    config = sections.load_arms("cifar10_resnet20")[arm]
    assert by_epoch(with_epochs(config, 5)) == by_epoch(config)[::20]


@pytest.mark.slow
def test_killed_half_way(tmp_path):
    def start(name):
        command = [sys.executable, "-m", "experiments.reproduce", "digits", "--seeds", "2"]
        command += ["--arms", "fixed_large", "adaptive", "--epochs", "5", "--out"]
        return subprocess.Popen(
            [*command, str(tmp_path / name)], cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    whole = start("whole")
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    for rows in (2, 4):
        process = start("killed")
        metrics = tmp_path / "killed/runs/digits_cnn/adaptive/seed1/metrics.jsonl"
        deadline = time.monotonic() + 200
        while not (metrics.exists() and metrics.read_text().count("\n") >= rows):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.005)
        process.kill()
        process.communicate()
    process = start("killed")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "3 of them over already" in output
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")
