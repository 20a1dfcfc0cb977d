"""A document of a few kinds of parts, written as Markdown and as HTML alike."""

import dataclasses
import re
from collections.abc import Iterable

from matplotlib.figure import Figure

from adabatch_jax.reporting import html_elements
from adabatch_jax.reporting.plot_elements import inline_svg


@dataclasses.dataclass(frozen=True)
class Heading:
    """Begins a part; level 2 for the large ones, 3 for those inside."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """Sentences; `kind` is "lead", "note" or nothing."""

    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Texts in rows; columns that aren't among `text_columns` are aligned as numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: tuple[int, ...] = (0,)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, drawn into the page and saved as the file `name`.png.

    Attributes:
      figure: the figure.
      name: of the file, without the ending.
      title: what is said in its place where it can't be shown.
      caption: what is said below it.
    """

    figure: Figure
    name: str
    title: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to type."""

    lines: tuple[str, ...]


Part = Heading | Paragraph | Items | Table | Picture | Code


def to_markdown(title: str, parts: Iterable[Part]) -> str:
    """The document as Markdown that reads well as plain text too."""
    texts = [f"# {_inline(title)}", *(_markdown(part) for part in parts)]
    return "\n\n".join(texts) + "\n"


def to_html(title: str, parts: Iterable[Part]) -> str:
    """The document as one page that needs nothing from elsewhere."""
    return html_elements.page(title, [_html(part) for part in parts])


def _markdown(part: Part) -> str:
    match part:
        case Heading(level, text):
            return f"{'#' * level} {_inline(text)}"
        case Paragraph(text):
            return _inline(text)
        case Items(texts):
            return "\n".join(f"* {_inline(text)}" for text in texts)
        case Table():
            return _markdown_table(part)
        case Picture(_, name, title, caption):
            return f"![{_inline(title)}]({name}.png)\n\n*{_inline(caption)}*"
        case Code(lines):
            return _markdown_code(lines)


def _markdown_table(table: Table) -> str:
    rows = [
        [_inline(cell).replace("|", "\\|") for cell in row] for row in (table.header, *table.rows)
    ]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [column in table.text_columns for column in range(len(widths))]
    lines = [
        " | ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, is_text, strict=True)
        )
        for row in rows
    ]
    rules = ["-" * w if text else "-" * (w - 1) + ":" for w, text in zip(widths, is_text)]
    lines.insert(1, " | ".join(rules))
    return "\n".join(f"| {line} |" for line in lines)


def _markdown_code(lines: tuple[str, ...]) -> str:
    """Lines between fences that are longer than anything inside that could end them."""
    text = "\n".join(lines)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"


def _inline(text: str) -> str:
    """Text on one line, without what Markdown would take for its own: marks, tags and links."""
    return re.sub(r"([\\`*]|<(?=[a-zA-Z/!?])|\](?=[\[(:]))", r"\\\1", " ".join(text.split()))


def _html(part: Part) -> str:
    match part:
        case Heading(level, text):
            return f"<h{level}>{html_elements.escaped(text)}</h{level}>"
        case Paragraph(text, kind):
            return html_elements.paragraph(text, kind)
        case Items(texts):
            items = (f"<li>{html_elements.escaped(text)}</li>" for text in texts)
            return "<ul>\n" + "\n".join(items) + "\n</ul>"
        case Table(header, rows, text_columns):
            return html_elements.table(header, rows, text_columns)
        case Picture(figure, name, _, caption):
            return html_elements.figure(name, inline_svg(figure, name), caption)
        case Code(lines):
            return "<pre>" + html_elements.escaped("\n".join(lines)) + "</pre>"
