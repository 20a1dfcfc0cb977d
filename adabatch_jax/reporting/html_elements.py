"""The few HTML elements that reports are made of; every value is escaped here."""

import hashlib
import html
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# HTML has no place for them, and a terminal acts on them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --ink: #24292e; --soft: #626b75; --faint: #d8dbe0; --band: #f2f4f6; --paper: #ffffff;
  --mark: #fff3cd; --line-0: #0072b2; --line-1: #d55e00; --line-2: #009e73; --line-3: #cc79a7;
  --line-4: #e69f00; --line-5: #56b4e9; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --soft: #9aa4af; --faint: #3a4149;
  --band: #20262d; --paper: #14181d; --mark: #473c14; --line-0: #4ba3e3; --line-1: #f5894a;
  --line-2: #35c29a; --line-3: #e39cc4; --line-4: #f0b840; --line-5: #8fd0f5; } }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p.lead { font-size: 1.1rem; max-width: 46rem; margin: 0 0 1rem; }
p.note, figcaption { color: var(--soft); max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--faint); max-width: 30rem; overflow-wrap: break-word; }
th { font-weight: 600; } thead th { color: var(--soft); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.scroll :is(td, th):first-child { position: sticky; left: 0; background: var(--paper); }
.scroll tr.differs > * { background: var(--mark); }
figure { margin: 0 0 1.2rem; } figure svg { width: 100%; height: auto; display: block; }
figure > a { color: inherit; cursor: zoom-in; } figcaption a { margin-right: .6rem; }
a { color: var(--line-0); } figure .close, figure:target .zoom { display: none; }
figure .keys { display: none; } figure:target .keys { display: block; }
figure:target .close { display: inline; }
figure:target { position: fixed; inset: 0; z-index: 1; margin: 0; padding: 1rem; overflow: auto;
  background: var(--paper); } figure:target > a { cursor: default; }
figure:target svg { width: max(100%, 46rem); max-height: calc(100vh - 5rem); min-height: 28rem; }
.choice > input { position: absolute; opacity: 0; } .choice > span { color: var(--soft); }
.choice > label { display: inline-block; margin: 0 0 .8rem .5rem; padding: .1rem .7rem;
  border: 1px solid var(--faint); border-radius: 1rem; cursor: pointer; }
.choice > input:checked + label { background: var(--band); font-weight: 600; }
.choice > input:focus-visible + label { outline: 2px solid var(--line-0); }
.chosen { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.chosen > div { min-width: 0; } .option-0, .option-1, .option-2 { display: none; }
.choice > input:nth-of-type(1):checked ~ .chosen .option-0,
.choice > input:nth-of-type(2):checked ~ .chosen .option-1,
.choice > input:nth-of-type(3):checked ~ .chosen .option-2 { display: block; }
.bar { display: flex; height: 1.1rem; margin: .4rem 0; background: var(--band); }
.keys { margin: 0 0 .8rem; } .keys span { margin-right: 1.4rem; white-space: nowrap; }
.keys i { display: inline-block; width: .7rem; height: .7rem; margin-right: .4rem; }
.keys b { display: inline-block; width: 1.6rem; margin-right: .4rem; vertical-align: middle; }
@media (max-width: 40rem) { main { padding: 1rem .8rem 3rem; } .keys span { white-space: normal; }
  th, td { padding-right: .6rem; max-width: 11rem; font-size: .9rem; }
  tbody th { overflow-wrap: anywhere; min-width: 8rem; } thead th { white-space: normal; } }
ul { padding-left: 1.2rem; max-width: 46rem; } td:last-child, th:last-child { padding-right: 0; }
pre { background: var(--band); padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); }
@media print { @page { margin: 1.5cm; } main { max-width: none; padding: 0; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole page that needs nothing from elsewhere; `body` are elements of this module's."""
    return _PAGE.format(title=escaped(title), style=_STYLE, body="\n".join(body))


def sealed(page: str, subject: bytes = b"") -> bytes:
    """A page as it is written, with a digest at its end of it and of what it is about."""
    # A name of a folder that isn't UTF-8 has halves of characters in it.
    content = page.encode("utf-8", "backslashreplace")
    return content + _seal(content, subject)


def is_sealed(content: bytes, subject: bytes) -> bool:
    """Whether a page is one that `sealed` gave for this subject.

    >>> is_sealed(sealed("<p>1", b"a"), b"a"), is_sealed(sealed("<p>1", b"a"), b"b")
    (True, False)
    """
    end = len(content) - len(_seal(b"", b""))
    return content[end:] == _seal(content[:end], subject)


def _seal(content: bytes, subject: bytes) -> bytes:
    digest = hashlib.sha256(content + subject).hexdigest()
    return f"<!-- sha256 of all before and its subject: {digest} -->\n".encode()


def escaped(value: Any) -> str:
    """Any value as text that HTML shows as it is, control characters written out.

    >>> escaped("<script>\\x1b[2J")
    '&lt;script&gt;\\\\x1b[2J'
    """
    return html.escape(_CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(value)))


def section(title: str, *elements: str) -> str:
    """A headed part of the page."""
    return f"<section>\n<h2>{escaped(title)}</h2>\n" + "\n".join(elements) + "\n</section>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is "lead", "note" or nothing."""
    return f'<p class="{escaped(kind)}">{escaped(text)}</p>'


def figure(
    name: str, drawing: str, caption: str, csv: str | None = None, enlarged_key: str = ""
) -> str:
    """A drawing that a click enlarges, with its caption and, as a file to save, its data.

    Args:
      name: tells it from the page's other figures; letters, digits and `_`.
      drawing: an element; what is in a part of it can be chosen with `choice`.
      caption: what is said below it.
      csv: the data.
      enlarged_key: the `key` of its lines, for when it covers the one that the page has.
    """
    links = [f'<a class="zoom" href="#{name}">enlarge</a>']
    links.append(f'<a class="close" href="#at-{name}">close</a>')
    if csv is not None:
        data = urllib.parse.quote(csv, safe=",")
        links.append(f'<a download="{name}.csv" href="data:text/csv;charset=utf-8,{data}">CSV</a>')
    return (
        f'<div id="at-{name}"><figure id="{name}">\n{enlarged_key}<a href="#{name}">{drawing}</a>\n'
        f"<figcaption>{escaped(caption)} {' '.join(links)}</figcaption>\n</figure></div>"
    )


def choice(name: str, options: Sequence[str], label: str, *elements: str) -> str:
    """Elements of which those parts are shown that a reader chooses, at first the first option's.

    `option_part` makes the parts of each option; there are at most three.
    """
    buttons = "".join(
        f'<input type="radio" name="{name}" id="{name}-{number}"{" checked" * (number == 0)}>'
        f'<label for="{name}-{number}">{escaped(option)}</label>'
        for number, option in enumerate(options)
    )
    body = "\n".join(elements)
    return (
        f'<div class="choice"><span>{escaped(label)}</span>{buttons}\n'
        f'<div class="chosen">\n{body}\n</div></div>'
    )


def option_part(number: int, element: str) -> str:
    """What is shown where the option of this number is chosen, counted from 0."""
    return f'<div class="option-{number}">{element}</div>'


def key(names: Sequence[str], colours: Sequence[str], styles: Sequence[str]) -> str:
    """Names with the colour and the style (CSS's for borders) of their lines."""
    entries = "".join(
        f'<span><b style="border-top: 3px {style} {escaped(colour)}"></b>{escaped(name)}</span>'
        for name, colour, style in zip(names, colours, styles, strict=True)
    )
    return f'<p class="keys">{entries}</p>'


def details(summary: str, *elements: str) -> str:
    """Elements that are folded away at first."""
    return f"<details><summary>{escaped(summary)}</summary>\n" + "\n".join(elements) + "</details>"


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], text_columns: Sequence[int] = (0,)
) -> str:
    """A table; columns that aren't among `text_columns` are aligned as numbers."""
    kinds = ["" if column in text_columns else ' class="number"' for column in range(len(header))]
    head = _cells("th", header, kinds)
    body = "\n".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def settings_table(
    columns: Sequence[str], settings: Mapping[str, Sequence[Any]], mark: bool = False
) -> str:
    """Names and values, one column for each of `columns`; `mark` highlights the rows."""
    names = "".join(f"<th>{escaped(name)}</th>" for name in ("", *columns))
    head = f"<thead><tr>{names}</tr></thead>\n" if len(columns) > 1 else ""
    kind = ' class="differs"' if mark else ""
    body = "\n".join(
        f"<tr{kind}><th>{escaped(name)}</th>{_cells('td', values, [''] * len(values))}</tr>"
        for name, values in settings.items()
    )
    return f'<div class="scroll"><table>\n{head}<tbody>\n{body}\n</tbody></table></div>'


def share_bar(shares: Sequence[tuple[str, str, float]]) -> str:
    """A bar made of coloured parts, (name, CSS colour, share of the whole), and its key."""
    parts = "".join(
        f'<span style="width:{100 * share:.2f}%;background:{escaped(colour)}"></span>'
        for _, colour, share in shares
    )
    keys = "".join(
        f'<span><i style="background:{escaped(colour)}"></i>{escaped(name)}</span>'
        for name, colour, _ in shares
    )
    return f'<div class="bar">{parts}</div>\n<p class="keys">{keys}</p>'


def _cells(tag: str, values: Iterable[Any], kinds: Sequence[str]) -> str:
    cells = zip(values, kinds, strict=True)
    return "".join(f"<{tag}{kind}>{escaped(value)}</{tag}>" for value, kind in cells)
