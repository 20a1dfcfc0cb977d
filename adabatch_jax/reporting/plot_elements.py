"""What plots are made of: colours, axes, and figures as PNG and as SVG for a page."""

import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

# Okabe and Ito's colours, which the colour-blind can tell apart too, the pale yellow left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINE_STYLES = ("solid", "dashed", "dotted", "dashdot")
# Each colour occurs for one purpose only: on a page it follows the page's theme by its name.
INK, FAINT, BAND = "#24292e", "#d8dbe0", "#f2f4f6"

STYLE = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of runs are not mathematics
}


def line_look(number: int) -> tuple[str, str]:
    """The colour and the style of one of many lines: all colours before the next style."""
    style = number // len(COLOURS) % len(LINE_STYLES)
    return COLOURS[number % len(COLOURS)], LINE_STYLES[style]


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an `<svg>` element for a page, in the page's own text colour.

    The name tells the identifiers inside from those of the page's other figures.
    """
    content = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        FigureCanvasSVG(figure)
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg)
    svg = svg.replace("xlink:href", "href")
    themed = {INK: "ink", FAINT: "faint", BAND: "band"}
    themed |= {colour: f"line-{number}" for number, colour in enumerate(COLOURS)}
    for colour, variable in themed.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def set_batch_axis(axes: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic y axis with a tick at each batch size, as far as there is room."""
    axes.set_yscale("log", base=2)
    ticks = sorted(set(sizes))
    if len(ticks) > 7:
        axes.yaxis.set_major_locator(LogLocator(base=2, numticks=7))
    else:
        axes.set_yticks(ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))
    axes.set_ylim(min(sizes) / 1.5, max(sizes) * 1.5)


def set_value_axis(axes: Axes, values: Sequence[float], is_stepwise: bool) -> None:
    """A logarithmic axis where the values span a decade, else a linear one."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 10:
        axes.set_yscale("log")
        subs = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    elif is_stepwise and low >= 0:
        axes.set_ylim(0, 1.12 * high or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(plain_number))


def plain_number(value: float, _position: int | None = None) -> str:
    """A tick's label without superfluous digits."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.6g}M"
    return f"{value:.0e}" if 0 < abs(value) < 1e-4 else f"{value:,.10g}"
