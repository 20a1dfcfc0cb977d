"""The other end of `torch_worker`: starts it and asks it for seconds."""

import json
import math
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_LONGEST_SECONDS = 600.0


class TorchUnavailable(Exception):
    """There is no torch, or it can't do what was asked; the text says which."""


class TorchProcess:
    """A worker process; a context manager.

    Attributes:
      description: torch's version and device.

    Args:
      python: the interpreter; None for this one.

    Raises:
      TorchUnavailable: it has no torch.
    """

    def __init__(self, python: str | None = None):
        self._process = subprocess.Popen(
            [python or sys.executable, "-m", "experiments.benchmarks.torch_worker"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": ""},
        )
        line = self._process.stdout.readline()
        if not line:
            self.__exit__()
            raise TorchUnavailable("torch is not installed")
        self.description = json.loads(line)

    def __enter__(self) -> "TorchProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()

    def seconds(
        self,
        network: str,
        batch_size: int,
        *,
        dtype: str = "float32",
        mode: str = "eager",
        updates: int = 1,
        deadline: float = math.inf,
        **shape: int,
    ) -> float:
        """Seconds of some updates; before the first ones of a network it builds and compiles.

        `shape` is what else the network is built with, see `torch_worker`.

        Raises:
          TorchUnavailable: it failed, or there was no answer when `time.monotonic()` passed
            `deadline`; the process is gone then.
        """
        answer = self._ask(
            {
                "network": network,
                "batch_size": batch_size,
                "dtype": dtype,
                "mode": mode,
                "updates": updates,
                **shape,
            },
            deadline,
        )
        if "error" in answer:
            raise TorchUnavailable(answer["error"])
        return answer["seconds"]

    @property
    def is_alive(self) -> bool:
        """Whether it still answers; it is gone after a deadline, or when it had no memory."""
        return self._process.poll() is None

    def forget(self) -> None:
        """Frees the memory of everything it has built."""
        self._ask({"forget": True})

    def _ask(self, request: dict[str, Any], deadline: float = math.inf) -> dict[str, Any]:
        left = min(deadline - time.monotonic(), _LONGEST_SECONDS)
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            # It answers with one line, so nothing waits in the buffer that select can't see.
            is_answered = select.select([self._process.stdout], [], [], max(left, 0))[0]
            line = self._process.stdout.readline() if is_answered else None
        except (BrokenPipeError, ValueError):
            line = ""
        if line is None:
            self._process.kill()
            self._process.wait()
            raise TorchUnavailable("out of time")
        if not line:
            raise TorchUnavailable("the process with torch has ended")
        return json.loads(line)
