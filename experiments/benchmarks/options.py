"""What the command line says to every benchmark."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that benchmarks share.

    Attributes:
      torch_python: a Python that imports torch, for the comparison with PyTorch.
      quick: tiny sizes and single rounds, to see that everything runs; the figures mean nothing.
    """

    torch_python: str | None = None
    quick: bool = False
