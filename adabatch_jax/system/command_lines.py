"""What every command line shares: one sentence for an expected error, the right exit code."""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from adabatch_jax.system.errors import UsageError, explained_error
from adabatch_jax.system.number_texts import printable
from adabatch_jax.system.output_streams import forgiving_output

INTERRUPTED = 130
_LONGEST_SENTENCE = 2_000


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

    Expected errors are printed as one sentence, and so are a file that can't be used (exit code 5)
    and memory that has run out; anything else is a defect of ours and keeps its traceback (exit
    code 1). Where the output can't be written, as its reader (`| head -1`) has gone, nothing more
    is said and the code is still that of the work.
    """
    # TensorFlow, where one is, and others read this when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with forgiving_output():
        return _code_of(body)


def _code_of(body: Callable[[], int]) -> int:
    try:
        return body()
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        explained = explained_error(error)
        if explained is None:
            raise
        print(printable(f"error: {_shortened(str(explained))}"), file=sys.stderr)
        return explained.exit_code


def _shortened(text: str) -> str:
    """A sentence that quotes what somebody gave, whose end is lost where it is a whole file."""
    half = _LONGEST_SENTENCE // 2
    return text if len(text) <= 2 * half else f"{text[:half]} ... {text[-half:]}"
