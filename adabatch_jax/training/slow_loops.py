"""Convolutions that XLA computes with naive loops on CPU, found in a compiled program."""

import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_BODIES = re.compile(r"\b(?:body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_CONVOLUTION = re.compile(r" convolution\(.*\bdim_labels=(\S+?)(?:,|$)")
# Channels last throughout, with any number of spatial axes.
_FAST = re.compile(r"b(\d+)f_\1io->b\1f")


def slow_convolutions(compiled_text: str) -> int:
    """Counts the convolutions in loops and branches that miss XLA's fast CPU kernels.

    Outside of loops XLA rearranges a convolution until a fast kernel takes it. In the body of a
    loop (`lax.scan`, `lax.fori_loop`) or a branch (`lax.cond`) it doesn't: what isn't written as
    (NHWC, HWIO) -> NHWC there takes 18 to 40 times as long, as do the gradients of
    `lax.conv_general_dilated`. See `models.convolution.conv2d` for one that is fast.

    Args:
      compiled_text: `compiled.as_text()` of a program for CPU.

    >>> import jax
    >>> from jax import lax
    >>> def slow_ones(kernel_layout):
    ...     def convolve(i, x):
    ...         layout = ("NHWC", kernel_layout, "NHWC")
    ...         return lax.conv_general_dilated(x, x[:3, :3], (1, 1), "SAME", None, None, layout)
    ...     jitted = jax.jit(lambda x: lax.fori_loop(0, 2, convolve, x))
    ...     x = jax.ShapeDtypeStruct((4, 4, 4, 4), "float32")
    ...     return slow_convolutions(jitted.lower(x).compile().as_text())
    >>> slow_ones("HWIO"), slow_ones("HWOI")
    (0, 1)
    """
    lines = _lines_of_computations(compiled_text)
    found = {name for of_one in lines.values() for line in of_one for name in _bodies(line)}
    to_visit = list(found)
    while to_visit:
        for line in lines.get(to_visit.pop(), ()):
            new = {*_CALLED.findall(line), *_bodies(line)} - found
            found |= new
            to_visit.extend(new)
    convolutions = (_CONVOLUTION.search(line) for name in found for line in lines.get(name, ()))
    return sum(1 for match in convolutions if match and not _FAST.fullmatch(match[1]))


def _lines_of_computations(compiled_text: str) -> dict[str, list[str]]:
    """The instructions of each computation, by its name."""
    lines, current = {}, []
    for line in compiled_text.splitlines():
        if header := _COMPUTATION.match(line):
            current = lines[header[1]] = []
        else:
            current.append(line)
    return lines


def _bodies(line: str) -> Iterator[str]:
    """The names of an instruction's loop body and branches."""
    yield from _BODIES.findall(line)
    for names in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in names.split(","))
