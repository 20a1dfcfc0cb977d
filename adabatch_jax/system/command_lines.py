"""What every command line shares: one sentence for an expected error, the right exit code."""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from adabatch_jax.system.errors import AdabatchError, StorageError, UsageError, explain_missing
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.output_streams import forgiving_output

INTERRUPTED = 130

_SYSTEM_IS_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)


class Parser(argparse.ArgumentParser):
    """One whose mistakes are expected errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}.")


def command_text(words: Iterable[str]) -> str:
    """A command in one line, as a shell takes it, whatever bytes the names of files have.

    >>> print(command_text(["train", "--workdir", "it's", "a\\nb", "\\udcff"]))
    train --workdir 'it'"'"'s' $'a\\012b' $'\\377'
    """
    return " ".join(shlex.quote(word) if word.isprintable() else _by_bytes(word) for word in words)


def _by_bytes(word: str) -> str:
    shown = (
        chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\{b:03o}" for b in os.fsencode(word)
    )
    return f"$'{''.join(shown)}'"


def run(body: Callable[[], int]) -> int:
    """Calls `body` and returns its exit code, or that of the expected error it raised.

    Expected errors are printed as one sentence, and so is what the system can't do for any program;
    anything else is a defect of ours and keeps its traceback (exit code 1). Where the output can't
    be written, as its reader (`| head -1`) has gone, nothing more is said and the code is still
    that of the work.
    """
    # TensorFlow, where one is, and others read this when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with forgiving_output():
        return _code_of(body)


def _code_of(body: Callable[[], int]) -> int:
    try:
        return body()
    except AdabatchError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        explained = explain_missing(error)
        if explained is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return explained.exit_code
    except (OSError, MemoryError) as error:
        number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
        if number not in _SYSTEM_IS_SHORT_OF:
            raise
        where = "" if getattr(error, "filename", None) is None else f" {error.filename}"
        print(
            printable(f"error: the system refuses{where}: {os.strerror(number)}."), file=sys.stderr
        )
        return StorageError.exit_code
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
