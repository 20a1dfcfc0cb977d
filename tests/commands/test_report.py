import json
import os
import subprocess
import sys

import pytest
from rich.text import Text

from adabatch_jax import report
from adabatch_jax.system.files import write_json, write_sealed

PHASES = [(0, 100, 0, 6_400, 64), (100, 150, 6_400, 12_800, 128)]


@pytest.fixture
def make_run(tmp_path):
    """Writes a small run directory: two epochs, the batch doubles at the second."""

    def make(folder, finished=True, **settings):
        directory = tmp_path / folder
        directory.mkdir()
        names = ("start_step", "stop_step", "start_sample", "stop_sample", "batch_size")
        phases = [{"index": i, **dict(zip(names, p, strict=True))} for i, p in enumerate(PHASES)]
        rows = [
            {
                "step": step,
                "samples": 64 * step if step <= 100 else 128 * step - 6_400,
                "epoch": (64 * step if step <= 100 else 128 * step - 6_400) / 6_400,
                "batch_size": 64 if step <= 100 else 128,
                "learning_rate": 0.1,
                "train_loss": 10 / step,
                "examples_digest": f"{step:08x}",
                "test_accuracy": step / 160,
                "elapsed_seconds": step / 10,
            }
            for step in range(25, 151, 25)
        ]
        plan = {
            "num_examples": 6_400,
            "remainder": "carry",
            "divisible_by": 1,
            "duration": "2ep",
            "num_steps": 150,
            "num_samples": 12_800,
            "phases": phases,
        }
        config = {"name": folder, "lr": "0.1", "seed": 0, **settings}
        files = {"config": config, "plan": plan, "environment": {}}
        if finished:
            files["summary"] = {**rows[-1], "total_seconds": 16.0, "step_seconds": 12.0}
        for name, content in files.items():
            write = write_sealed if name == "summary" else write_json
            write(directory / f"{name}.json", content)
        (directory / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        return directory

    return make


def test_one_run_gets_its_report_in_its_directory(make_run, capsys):
    directory = make_run("growing")
    assert report.main([str(directory)]) == 0
    assert capsys.readouterr().out == f"Report: {directory / 'report.html'}\n"
    assert "<h1>growing</h1>" in (directory / "report.html").read_text()
    for name in ("epochs", "updates", "seconds"):
        content = (directory / f"curves_{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB\x60\x82")


def test_out_names_the_page(make_run, tmp_path):
    directory = make_run("growing")
    assert report.main([str(directory), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists() and not (directory / "report.html").exists()
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["page_epochs.png", "page_seconds.png", "page_updates.png"]
    assert not list(directory.glob("*.png"))  # the run may be somebody else's


def test_write_report_returns_the_page(make_run):
    directory = make_run("growing")
    assert report.write_report(directory) == directory / "report.html"


def test_several_runs_are_compared(make_run, tmp_path, capsys, monkeypatch):
    runs = [make_run("growing"), make_run("fixed", finished=False, seed=1)]
    monkeypatch.chdir(tmp_path)
    assert report.main([str(run) for run in runs]) == 0
    header, first, second, *sentences = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "batch", "size", "epochs"]
    assert first.split() == (
        "growing 64 to 128 2 150 12,800 93.75 % 93.75 % 16 s 12 s - 00000096".split()
    )
    assert second.startswith("fixed (unfinished)") and "150 of 150" in second
    assert sentences == [
        "All runs saw the same 12,800 examples first, in the same order.",
        "Settings that differ: name, seed.",
        "Report: report.html",
    ]
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "report.html",
        "report_epochs.png",
        "report_updates.png",
        "report_seconds.png",
    }


@pytest.mark.parametrize("width", [60, 160])
def test_comparison_on_a_terminal_fits_it(make_run, tmp_path, capsys, monkeypatch, width):
    runs = [make_run("[red]growing"), make_run("fixed")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert report.main([str(run) for run in runs]) == 0
    table = Text.from_ansi(capsys.readouterr().out).plain.split("All runs")[0]
    assert "[red]growing" in table and "12,800" in table and "─" in table
    assert max(map(len, table.splitlines())) <= width
    is_transposed = any(line.strip().startswith("test accuracy") for line in table.splitlines())
    assert is_transposed == (width == 60)


@pytest.mark.parametrize(
    "arguments, code, sentence",
    [
        (["growin"], 2, "error: there is no run directory 'growin'; did you mean 'growing'?\n"),
        (["empty"], 2, "error: 'empty' is not a run directory: config.json and plan.json and "),
        (["growing", "--out", "page.pdf"], 2, "error: --out is an HTML file such as report.html"),
        (
            ["growing", "--out", "no/page.html"],
            5,
            "error: cannot write no/page_epochs.png: No ",
        ),
        (["damaged"], 5, "error: damaged/plan.json is damaged: it is not JSON"),
        (["growing", "fixed"], 2, "error: there is no run directory 'fixed'"),
    ],
)
def test_mistakes_get_one_sentence(
    make_run, tmp_path, capsys, monkeypatch, arguments, code, sentence
):
    make_run("growing")
    (make_run("damaged") / "plan.json").write_text("{")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == code
    out, errors = capsys.readouterr()
    assert out == "" and errors.startswith(sentence) and errors.count("\n") == 1


def test_unknown_flag_and_missing_run_are_usage_errors(capsys):
    assert report.main(["--no-such-flag", "run"]) == 2
    assert report.main([]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ") and "--no-such-flag" in first
    assert second.startswith("error: ") and "RUN" in second


def test_help_is_quick():
    code = (
        "import sys; from adabatch_jax import report; code = report.main(['--help']);"
        "heavy = {'jax', 'matplotlib', 'rich', 'numpy'} & set(sys.modules);"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "RUN" in done.stdout


def test_reader_that_goes_away_is_no_error(make_run, tmp_path):
    runs = [make_run("growing"), make_run("fixed")]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "adabatch_jax.report", *runs, "--out", tmp_path / "page.html"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_page_is_written_last(make_run, monkeypatch):
    """Where it is, a run that is started again takes the report for complete."""
    directory = make_run("run")

    def killed(figure):
        raise KeyboardInterrupt

    monkeypatch.setattr("adabatch_jax.reporting.plot_elements.png", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write_report(directory)
    assert not (directory / "report.html").exists()
