"""What a command says of errors, and its exit code."""

import errno

import pytest

from adabatch_jax.system.command_lines import run
from adabatch_jax.system.errors import UsageError


def told(error, capsys):
    def fail():
        raise error

    code = run(fail)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(13, "Permission denied", "a/config.json"), 5, "a/config.json: Permission"),
        (OSError(errno.EMFILE, "Too many open files"), 5, "Too many open files."),
        (OSError(errno.ENOMEM, "Cannot allocate memory", "a"), 1, "memory ran out ("),
        (MemoryError(), 1, "memory ran out (MemoryError)"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), 1, "9 bytes); "),
        (RuntimeError("can't start new thread"), 1, "memory ran out (can't start new thread)"),
    ],
)
def test_what_the_machine_did_is_one_sentence(error, code, says, capsys):
    found, err = told(error, capsys)
    assert found == code and err.startswith("error: ") and says in err and err.count("\n") == 1


def test_a_defect_keeps_its_traceback(capsys):
    for error in (RuntimeError("out of ideas"), OSError("without a number")):
        with pytest.raises(type(error)):
            told(error, capsys)


def test_a_long_quotation_is_cut_and_the_sentence_keeps_its_end(capsys):
    code, err = told(UsageError(f"name: {'x' * 10**6} is too long; give less."), capsys)
    assert code == 2 and len(err) < 2_100
    assert err.startswith("error: name: xxx") and err.endswith(" give less.\n")
