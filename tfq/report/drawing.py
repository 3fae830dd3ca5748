# SPDX-License-Identifier: Apache-2.0
"""Drawing with matplotlib, as inline SVG that takes its colours and its font from the page around it."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any
from warnings import catch_warnings, filterwarnings

from tfq.report.formatting import plain

# Stand for the page's text colour, and for the colour of each model, while matplotlib draws.
INK = "#010203"
SERIES = tuple(f"#0102{number:02x}" for number in range(10, 16))
MARKERS = ("o", "s", "D", "^", "v", "P")

_WIDTH = 4.5
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.5,
}


def colour_of(series: int) -> str:
    """What to draw the model of that number in."""
    return SERIES[series % len(SERIES)]


def marker_of(series: int) -> str:
    """Its shape, for those who do not tell the colours apart."""
    return MARKERS[series % len(MARKERS)]


@contextmanager
def style() -> Iterator[None]:
    """Inside, matplotlib draws as the report does; after it, as before. Raises ImportError where there is none."""
    import matplotlib

    with matplotlib.rc_context(), catch_warnings():
        # A glyph that matplotlib's font lacks is drawn by the browser's: text stays text in the SVG.
        filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def missing_matplotlib(error: ImportError) -> str:
    """What stands in the place of a drawing."""
    return f"not drawn: matplotlib cannot be imported ({plain(error)}): pip install 'tfq[report]'"


def figure_of(height: float) -> tuple[Any, Any]:
    """An empty figure of that height in inches, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Without pyplot: it would choose a backend for the whole process.
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def svg_of(figure: Any, title: str) -> str:
    """The drawing. title: our own words, for those who do not see it; the same bytes for the same drawing."""
    import matplotlib

    file = StringIO()
    matplotlib.rcParams["svg.hashsalt"] = title
    figure.savefig(
        file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<(metadata|defs)>\s*(<style.*?</style>)?.*?</\1>\s*", _without_style, drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->\s*", "", drawing, flags=re.DOTALL)
    # Several drawings stand on one page: an id that nothing refers to is only one more that is given twice.
    referred = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", drawing))
    drawing = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", drawing)
    drawing = re.sub(r"((?:fill|stroke): ?)" + INK, r"\1currentColor", drawing)
    for number, colour in enumerate(SERIES):
        drawing = re.sub(rf"((?:fill|stroke): ?){colour}", rf"\1var(--c{number})", drawing)
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()


def _without_style(match: re.Match[str]) -> str:
    """Drops the metadata; of the definitions, a style sheet that would apply to the whole page."""
    return "" if match[1] == "metadata" or match[2] else match[0]


def label_value(axes: Any, x: float, y: float, text: str) -> None:
    """A bar's or strip's number, to the right of its end."""
    axes.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Rows from the top down, each with its name; long ones shortened in the middle."""
    short = [name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}" for name in names]
    axes.set_yticks(range(len(names)), short)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
