"""What every command line shares: one sentence for an expected error, the right exit code."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from adabatch_jax.system.errors import AdabatchError, UsageError, explain_missing
from adabatch_jax.system.output_streams import forgiving_output

INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """One whose mistakes are expected errors like all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')}.")


def run(body: Callable[[], int]) -> int:
    """Calls `body` and returns its exit code, or that of the expected error it raised.

    Expected errors are printed as one sentence; anything else is a defect of ours and keeps its
    traceback (exit code 1). Where the output can't be written, as its reader (`| head -1`) has
    gone, nothing more is said and the code is still that of the work.
    """
    # TensorFlow, where one is, and others read this when they are imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with forgiving_output():
        return _code_of(body)


def _code_of(body: Callable[[], int]) -> int:
    try:
        return body()
    except AdabatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        explained = explain_missing(error)
        if explained is None:
            raise
        print(f"error: {explained}", file=sys.stderr)
        return explained.exit_code
    except SystemExit as stop:  # --help was printed
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
