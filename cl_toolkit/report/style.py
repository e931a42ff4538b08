"""How a method looks: one colour, marker and line everywhere, told apart in print and by colour-blind readers."""

from __future__ import annotations

from dataclasses import dataclass

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
"""matplotlib settings, to be active while a figure is made and while it is saved."""


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
