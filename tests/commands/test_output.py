"""A command's exit code tells of its work, whatever becomes of its output."""

import os
import subprocess
import sys

import pytest

PRELUDE = "import os, sys\nfrom adabatch_jax.system.command_lines import run\n"


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], stderr=subprocess.PIPE, timeout=60, **options
    )


@pytest.mark.parametrize("code", [0, 3, 143])
def test_a_reader_that_has_gone_changes_no_exit_code(code):
    reader, writer = os.pipe()
    os.close(reader)
    body = f"for _ in range(10_000): print('a line')\n    return {code}"
    done = python(f"def body():\n    {body}\nsys.exit(run(body))", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")


def test_what_was_printed_last_may_fail_too():
    reader, writer = os.pipe()
    os.close(reader)
    done = python("sys.exit(run(lambda: print('kept in the buffer') or 0))", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_is_told_by_its_code_where_it_cannot_be_said():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from adabatch_jax.system.errors import RestoreError\ndef body(): raise RestoreError('x.')\n"
    command = [sys.executable, "-c", f"{PRELUDE}{code}sys.exit(run(body))"]
    done = subprocess.run(command, stdout=writer, stderr=writer, timeout=60)
    os.close(writer)
    assert done.returncode == 4


def test_no_file_becomes_a_closed_standard_output(tmp_path):
    code = (
        "def body():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n"
        "    os.write(1, b'from a library'); print('to nobody'); sys.stdout.flush()\n"
        "    return file.fileno() < 3\n"
        "code = run(body); sys.stdout.flush(); sys.exit(code)"
    )
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-c", PRELUDE + code]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_name_that_cannot_be_encoded_can_be_printed(capsys):
    from adabatch_jax.system.command_lines import run

    assert run(lambda: print(os.fsdecode(b"run \xff")) or 0) == 0
    assert capsys.readouterr().out == "run ?\n"


@pytest.mark.parametrize(("argv", "code"), [("-m", 2), ("-c", 1)])
def test_an_old_python_is_told_in_a_sentence(argv, code):
    old = f"import sys\nsys.version_info, sys.argv = (3, 10, 9), [{argv!r}]\nimport adabatch_jax"
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, done.stdout) == (code, "")
    assert last.endswith("adabatch_jax needs Python 3.11 or newer, this is 3.10.")
    assert ("Traceback" in done.stderr) == (argv == "-c")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        ("OSError(24, '', 'some file')", 5, b"error: some file: Too many open files.\n"),
        ("MemoryError()", 1, b"error: memory ran out (MemoryError); "),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, code, said):
    done = python(f"def body():\n    raise {error}\nsys.exit(run(body))")
    assert done.returncode == code and done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == 1


def test_other_errors_are_our_defects():
    done = python("def body():\n    raise OSError(2, '', 'a file')\nsys.exit(run(body))")
    assert done.returncode == 1 and b"Traceback" in done.stderr


def test_an_error_is_one_line_whatever_names_are_in_it():
    code = (
        "from adabatch_jax.system.errors import StorageError\n"
        "def body(): raise StorageError('cannot read a\\nb\\udcff\\x1b.')\nsys.exit(run(body))"
    )
    done = python(code)
    assert done.stderr == b"error: cannot read a\\nb\\udcff\\x1b.\n"
