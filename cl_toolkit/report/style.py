"""How a method looks: one colour, marker and line everywhere, told apart in print and by colour-blind readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cl_toolkit.report.comparison import Comparison

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito 2008, without black (controls) and yellow (too pale on paper)."""
MARKERS = "osD^vPX*"
INK, MUTED, FAINT = "#1b2330", "#5b6675", "#d9dee5"

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "hatch.color": "#b6bec9",
    "hatch.linewidth": 0.6,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
    "text.parse_math": False,  # names of methods and tasks are text, whatever they contain
}
"""matplotlib settings of a page."""


@dataclass(frozen=True)
class Sheet:
    """What figures are drawn on. width: of a figure, in inches. panels: at most so many side by side. legend: names in a row of
    it. formats: of the files, of which `svg` is one. rc: matplotlib settings, to be active while a figure is made and while it
    is saved."""

    width: float
    panels: int
    legend: int
    formats: tuple[str, ...]
    rc: Mapping[str, Any]

    @property
    def narrow(self) -> bool:
        """Whether long words and a legend at the side would leave no room for the figure."""
        return self.width < 5

    def short(self, name: str, letters: int) -> str:
        """No more than so many letters of a name, and twice as many where there is room."""
        letters *= 1 if self.narrow else 2
        return f"{name[: letters - 1]}…" if len(name) > letters else name

    def across(self, panels: int, least: float, taken: float = 0.0) -> int:
        """How many of so many panels stand side by side where one needs `least` inches, and `taken` are for what is beside."""
        return max(1, min(self.panels, panels, int((self.width - taken) / least)))


PAGE = Sheet(10.0, 3, 6, ("png", "svg"), RC)
PAPER = Sheet(3.25, 2, 2, ("pdf", "svg"), RC | {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titleweight": "normal",
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.fontsize": 7,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.0,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "pdf.fonttype": 42,  # TrueType, embedded: some venues refuse matplotlib's own Type 3
    "svg.fonttype": "none",  # text stays text
})  # fmt: skip
"""One column of a two-column paper; no letter is smaller than 7 points."""
LEGEND, TICK = 22, 14
"""Letters of a name for which a paper's column has room."""


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str], sheet: Sheet) -> None:
    """A legend above all panels, in as many columns as the figure is wide for; a page's figure grows by its further rows."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    columns = min(sheet.legend, len(labels))
    while columns > 1:
        legend = figure.legend(handles, labels, loc="outside upper left", ncols=columns)
        wide = legend.get_window_extent(renderer).width
        legend.remove()
        if wide <= figure.bbox.width:
            break
        columns -= 1
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
    if not sheet.narrow:
        figure.set_figheight(figure.get_figheight() + 0.2 * (-(-len(labels) // columns) - 1))


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash pattern of a method."""

    color: str
    marker: str
    dash: str | tuple


REFERENCES = tuple(
    Look(MUTED, marker, (0, dash))
    for marker, dash in zip("h<>p", ((5, 2), (9, 2), (5, 2, 1, 2), (9, 2, 1, 2)), strict=True)
)
"""None of them dotted, as the score of pure guessing is."""


def looks(comparison: Comparison) -> dict[str, Look]:
    """Method -> look. The first control is black, references are grey and dashed, each in its own way, the others take the
    palette in turn; from the seventh on they differ by dash and marker too."""
    result: dict[str, Look] = {}
    used = references = 0
    for method in comparison.methods:
        if method not in comparison.controls and INK not in {look.color for look in result.values()}:
            result[method] = Look(INK, "o", "-")
        elif not comparison.regime(method)["is_method"]:
            result[method] = REFERENCES[references % len(REFERENCES)]
            references += 1
        else:
            dash = ("-", (0, (6, 2)), (0, (3, 1, 1, 1)))[used // len(PALETTE) % 3]
            result[method] = Look(PALETTE[used % len(PALETTE)], MARKERS[(used + 1) % len(MARKERS)], dash)
            used += 1
    return result
