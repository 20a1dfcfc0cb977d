import io
import os
import pty
import subprocess
import sys
import time

import pytest

from adabatch_jax.runs.display.progress import LineProgress, Progress
from adabatch_jax.runs.display.stream_choice import make_progress
from adabatch_jax.schedules.plan import make_plan

PLAN = make_plan("128 x2 every 5ep max 1024", num_examples=50_000, duration="20ep")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class BrokenStream(io.StringIO):
    def write(self, text):
        raise BrokenPipeError("the reader has gone")


def row(step, **further):
    return {
        "step": step,
        "samples": PLAN.samples_at(step),
        "epoch": PLAN.epoch_at(step),
        "learning_rate": 0.075,
        "train_loss": 0.43211,
        **further,
    }


def script_text(body):
    """A program with a plan and `make_progress` at hand."""
    return (
        "import sys, time\n"
        "from adabatch_jax.runs.display.stream_choice import make_progress\n"
        "from adabatch_jax.schedules.plan import make_plan\n"
        "plan = make_plan('128 x2 every 5ep', num_examples=50_000, duration='20ep')\n"
        "row = {'step': 50, 'learning_rate': 0.1, 'train_loss': 0.5, 'test_accuracy': 0.9}\n"
    ) + body


def test_line_says_where_the_run_is():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    progress.tick(2000)
    clock.now = 10.0
    progress.tick(2149)  # 38,144 samples in 10 s; 700,000 - 144 are left
    progress.log(row(2149, test_accuracy=0.9611, examples_per_second=12_300.4))
    words = stream.getvalue().split("\n")[-2].split()
    assert " ".join(words) == (
        "epoch 6.0/20 step 2149 phase 2/4 batch 256 lr 0.075 loss 0.4321 "
        "12,300 ex/s 3:04 left test acc 96.1 %"
    )


def test_a_line_shows_what_a_run_measures_instead_of_an_accuracy():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    progress.log(row(50))
    progress.log(row(391, test_error=0.25, test_bits=2.5, test_more=1.0))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("loss 0.4321") and len(lines) == 2
    assert lines[1].split("loss 0.4321")[1].split() == "test error 0.2500 test bits 2.5000".split()


def test_lines_align():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    for step, loss in ((1, 12.5), (1955, 0.4), (3664, 1e-5)):
        clock.now += 11.0
        progress.tick(step)
        progress.log(row(step, train_loss=loss, test_accuracy=0.5))
    lines = [line for line in stream.getvalue().splitlines() if "test acc" in line]
    assert len(lines) == 3
    for label in ("step", "phase", "batch", "lr", "loss", "test acc"):
        assert len({line.index(label) for line in lines}) == 1, label


def test_lines_are_few():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    for step in range(1, 3001):  # 30 s
        clock.now += 0.01
        progress.tick(step)
        if step % 50 == 0:
            progress.log(row(step))
    assert 3 <= len(stream.getvalue().splitlines()) <= 4


def test_a_slow_step_still_gives_a_sign_of_life():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    progress.log(row(50, test_accuracy=0.5))
    for step in (51, 52, 53):
        clock.now += 60.0
        progress.tick(step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert "step   53" in lines[-1] and "left" in lines[-1]
    assert "test acc" not in lines[-1]  # that was measured at step 50


def test_time_left_counts_samples_not_steps():
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(PLAN, stream, clock)
    progress.tick(0)
    clock.now = 10.0
    progress.tick(PLAN.step_at(500_000) + 1)  # half of the samples, 80 % of the steps
    assert "0:10 left" in stream.getvalue()


def test_endless_stream_and_diverged_loss():
    plan = make_plan("100", num_examples=None, duration="2000sp")
    stream = io.StringIO()
    LineProgress(plan, stream).log({"step": 5, "train_loss": float("nan")})
    assert stream.getvalue().startswith("samples   500/2,000  step  5  phase 1/1  batch 100")
    assert "loss nan" in stream.getvalue()


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_terminals_that_cannot_move_the_cursor_get_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_progress(PLAN, stream=Terminal()), LineProgress)


def test_pipe_gets_lines_without_escape_sequences(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with make_progress(PLAN, stream=stream) as progress:
        progress.tick(50)
        progress.log(row(50))
        progress.message("phase 2 [bold]")
    assert isinstance(progress, LineProgress)
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith("phase 2 [bold]\n")


def show_on_terminal(monkeypatch, width, **environment):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    with make_progress(PLAN, stream=stream) as progress:
        progress.tick(2149)
        progress.log(row(2149, test_accuracy=0.9611, examples_per_second=12_300.0))
        progress.message("checkpoint [at] step 2149")
    return stream.getvalue()


def test_terminal_gets_a_live_display(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = show_on_terminal(monkeypatch, 100)
    assert "checkpoint [at] step 2149" in shown
    assert "test acc 96.1 %" in shown and "12,300 ex/s" in shown and "━" in shown
    assert "\x1b[36m" in shown


def test_no_color_keeps_the_display(monkeypatch):
    shown = show_on_terminal(monkeypatch, 100, NO_COLOR="1")
    assert "━" in shown and "─" in shown and "\x1b[36m" not in shown


def test_display_in_ascii(monkeypatch):
    monkeypatch.setattr(Terminal, "encoding", "ascii", raising=False)
    shown = show_on_terminal(monkeypatch, 80, NO_COLOR="1")
    assert shown.isascii() and "###" in shown and "---" in shown


@pytest.mark.parametrize("width", [20, 40, 60, 100])
def test_display_fits_the_terminal(monkeypatch, width):
    from rich.text import Text

    shown = show_on_terminal(monkeypatch, width, NO_COLOR="1")
    lines = [Text.from_ansi(line).plain for line in shown.replace("\r", "\n").split("\n")]
    assert max(len(line) for line in lines) <= width


def test_broken_stream_does_not_stop_training():
    for stream in (BrokenStream(), io.StringIO()):
        with make_progress(PLAN, stream=stream) as progress:
            stream.close()
            progress.log(row(50, test_accuracy=0.5))
            progress.tick(51)
            progress.message("still here")


def test_broken_pipe_ends_neither_the_run_nor_its_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    body = (
        "with make_progress(plan) as progress:\n"
        "    for step in range(1, 100):\n"
        "        progress.tick(step); progress.log(row)\n"
        "print('after'); sys.stdout.flush()\n"
        "print('trained', file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script_text(body)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "trained\n")


def test_closed_terminal_ends_neither_the_run_nor_its_exit_code():
    controller, terminal = pty.openpty()
    body = (
        "with make_progress(plan) as progress:\n"
        "    print(type(progress).__name__, file=sys.stderr, flush=True)\n"
        "    sys.stdin.readline()\n"
        "    for step in range(1, 4):\n"
        "        progress.tick(step); progress.log(row); time.sleep(0.3)\n"
        "print('trained', file=sys.stderr)\n"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", script_text(body)],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "xterm"},
    )
    assert script.stderr.readline() == "LiveProgress\n"
    os.close(terminal)
    os.close(controller)
    _, errors = script.communicate("go\n", timeout=30)
    assert (script.returncode, errors) == (0, "trained\n")


def test_standard_output_closed_from_the_start(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert type(make_progress(PLAN)) is Progress


def test_null_progress_says_nothing(capsys):
    with Progress() as progress:
        progress.tick(1)
        progress.log(row(1))
        progress.message("nothing")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("make_stream", [io.StringIO, Terminal])
def test_tick_costs_microseconds(monkeypatch, make_stream):
    monkeypatch.setenv("TERM", "xterm")
    with make_progress(PLAN, stream=make_stream()) as progress:
        start = time.perf_counter()
        for step in range(3000):
            progress.tick(step)
        seconds = time.perf_counter() - start
    assert seconds / 3000 < 20e-6
