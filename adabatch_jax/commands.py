"""What every command line shares: one sentence for an expected error, the right exit code."""

import os
import sys
from collections.abc import Callable

from adabatch_jax.errors import AdabatchError, explain_missing

INTERRUPTED = 130


def run(body: Callable[[], int]) -> int:
    """Calls `body` and returns its exit code, or that of the expected error it raised.

    Expected errors are printed as one sentence; anything else is a defect of ours and keeps its
    traceback (exit code 1).

    >>> run(lambda: 0)
    0
    """
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
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone: nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
