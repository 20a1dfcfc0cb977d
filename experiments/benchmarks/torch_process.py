"""The other end of `torch_worker`: starts it and asks it for seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


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
        image_size: int = 32,
        num_classes: int = 100,
    ) -> float:
        """Seconds of some updates; the first call for a network builds and compiles it too.

        Raises:
          TorchUnavailable: it failed.
        """
        request = dict(locals())
        del request["self"]
        answer = self._ask(request)
        if "error" in answer:
            raise TorchUnavailable(answer["error"])
        return answer["seconds"]

    def forget(self) -> None:
        """Frees the memory of everything it has built."""
        self._ask({"forget": True})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise TorchUnavailable("the process with torch died")
        return json.loads(line)
