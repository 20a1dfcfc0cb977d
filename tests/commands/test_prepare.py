"""The command that prepares datasets: exit codes, one-sentence errors, Ctrl-C, quick help."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from adabatch_jax.data.datasets.prepared_folders import is_prepared
from adabatch_jax.prepare import main
from tests.sentences import says

COMMAND = [sys.executable, "-m", "adabatch_jax.prepare"]


def test_prepares_and_says_where(tmp_path, capsys):
    assert main(["digits", "--data-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"digits is ready in {tmp_path}/digits/1.0.0 (")
    assert "Writing train: 1,442 of 1,442 examples\n" in err
    assert main(["digits", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_overwrite_prepares_again(tmp_path):
    arguments = ["digits", "--data-dir", str(tmp_path)]
    assert main(arguments) == 0
    (file,) = tmp_path.rglob("digits-test*")
    file.write_bytes(b"")
    assert main(arguments) == 0 and file.stat().st_size == 0
    assert main([*arguments, "--overwrite"]) == 0 and file.stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["digts"], 2, "'digts' … 'digits'"),
        (["cifar10", "--from", "/nonexistent"], 2, "/nonexistent"),
        (["imagenet2012"], 2, "'imagenet2012' … --from"),
    ],
)
def test_mistakes_are_one_sentence(arguments, code, text, tmp_path, capsys):
    assert main([*arguments, "--data-dir", str(tmp_path)]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(says(text), err)


def test_a_wrong_checksum_ends_with_5(tmp_path, capsys):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"junk")
    arguments = ["cifar10", "--from", str(tmp_path), "--data-dir", str(tmp_path / "data")]
    assert main(arguments) == 5
    err = capsys.readouterr().err
    assert re.search(says("cifar-10-binary.tar.gz … 'cifar10' … sha256"), err)
    assert err.count("\n") == 1
    assert not is_prepared("cifar10", tmp_path / "data")


def test_without_a_network_it_ends_within_20_seconds(tmp_path):
    # A proxy that refuses connections stands for a network that isn't there.
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    started = time.monotonic()
    done = subprocess.run(
        [*COMMAND, "cifar100", "--data-dir", str(tmp_path)],
        env=os.environ | proxies | {"no_proxy": ""},
        capture_output=True,
        text=True,
    )
    assert time.monotonic() - started < 20
    assert done.returncode == 2
    assert re.search(says("'cifar100' … www.cs.toronto.edu"), done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["digits", "--form", "x"], ["digits", "mnist"]])
def test_wrong_arguments_end_with_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_help_is_quick():
    code = (
        "import sys; from adabatch_jax.prepare import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'numpy', 'rich', 'tensorflow_datasets', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--from FOLDER" in done.stdout


@pytest.mark.parametrize(
    ("number", "code", "text"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")]
)
def test_an_interruption_leaves_nothing_behind(number, code, text, tmp_path):
    script = (
        "import os, signal, sys, runpy\n"
        "import adabatch_jax.data.datasets.preparation.stage_progress as progress\n"
        "counted = progress.counted\n"
        "def interrupted(items, *arguments):\n"
        "    for i, item in enumerate(counted(items, *arguments)):\n"
        f"        if i == 700: os.kill(os.getpid(), {int(number)})\n"
        "        yield item\n"
        "progress.counted = interrupted\n"
        "sys.argv[0] = 'prepare'\n"
        "runpy.run_module('adabatch_jax.prepare', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "digits", "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(f"examples\n{text}")
    assert done.stderr.count("\n") == 1 + text.count("\n")
    assert [path for path in tmp_path.rglob("*") if path.name != ".preparing"] == []


def test_a_terminal_gets_a_bar(tmp_path):
    leader, follower = pty.openpty()
    done = subprocess.Popen(
        [*COMMAND, "digits", "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 65536):
            shown += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(leader)
    assert done.wait() == 0
    assert b"is ready in" in done.stdout.read()
    assert "Writing train" in shown.decode() and "1,442 of 1,442 examples" in shown.decode()
    assert "━" in shown.decode()
    assert "Generating" not in shown.decode()
