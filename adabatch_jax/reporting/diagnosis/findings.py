"""What a diagnosis finds, as lines for people and as JSON for programs."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from adabatch_jax.system.errors import AdabatchError
from adabatch_jax.system.number_texts import printable

ENVIRONMENT, RESTORE, STORAGE = 2, 4, 5
"""Exit codes of problems, those of the errors that a run would end with."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      exit_code: of a problem; 0 where there is none.
      is_note: whether it is worth a second look all the same.
      data: what a program may want, as JSON values.
    """

    subject: str
    text: str
    exit_code: int = 0
    is_note: bool = False
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def state(self) -> str:
        """`"ok"`, `"note"` or `"problem"`."""
        return "problem" if self.exit_code else "note" if self.is_note else "ok"

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        shown = {name: getattr(self, name) for name in ("subject", "state", "text", "exit_code")}
        return shown | dict(self.data)


def good(subject: str, text: str, **data: Any) -> Finding:
    """Something that is as it should be."""
    return Finding(subject, text, data=data)


def note(subject: str, text: str, **data: Any) -> Finding:
    """Something to know, which stops nothing."""
    return Finding(subject, text, is_note=True, data=data)


def problem(subject: str, text: str, exit_code: int, **data: Any) -> Finding:
    """Something that would stop a run, or that was lost."""
    return Finding(subject, text, exit_code, data=data)


def of_error(subject: str, error: AdabatchError, **data: Any) -> Finding:
    """The problem that an expected error tells of."""
    return problem(subject, str(error), error.exit_code, **data)


def table_lines(findings: Sequence[Finding], width: int | None = None) -> list[str]:
    """Aligned lines, the problems and notes marked; broken to fit into `width` columns, if any.

    >>> for line in table_lines([good("lock", "free"), problem("checkpoint 20", "damaged", 4)]):
    ...     print(line)
      lock           free
      checkpoint 20  problem: damaged
    """
    subjects = max((len(finding.subject) for finding in findings), default=0)
    lines = []
    for finding in findings:
        mark = "" if finding.state == "ok" else f"{finding.state}: "
        head, text = f"  {finding.subject:<{subjects}}  ", printable(mark + finding.text)
        if width is None:
            lines.append((head + text).rstrip())
            continue
        indent = " " * len(head)
        lines += textwrap.wrap(
            text, max(width, len(head) + 20), initial_indent=head, subsequent_indent=indent,
            break_on_hyphens=False,
        )  # fmt: skip
    return lines
