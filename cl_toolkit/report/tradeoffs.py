"""Two figures of one point per run: learning against retention, cost beside accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from cl_toolkit.report.costs import compute_unit
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import lookup, number
from cl_toolkit.report.style import FAINT, INK, LEGEND, MUTED, PAGE, Look, Sheet, legend_above


def learning_retention(
    groups: Methods, look: Mapping[str, Look], unit: str, lower: bool, sheet: Sheet = PAGE
) -> Figure | None:
    """Learning accuracy against BWT, a point per run and the mean per method; None where no run has both."""
    trained = {m: runs for m, runs in groups.items() if lookup(runs[0], "regime.trained")}
    points = _points(trained, "metrics.learning_accuracy", "metrics.bwt")
    if not points:
        return None
    figure = Figure(figsize=_size(sheet), layout="constrained")
    axes = figure.subplots()
    _scatter(axes, points, look, sheet)
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    sizes = {len(r["tasks"]) for method in points for r in groups[method]}
    if len(sizes) == 1 and not lower:
        _equal_accuracy(axes, sizes.pop())
    axes.set_xlabel(_label(sheet, "learning accuracy", f"mean {unit} right after each task"))
    axes.set_ylabel(_label(sheet, "BWT", f"{unit} at the end minus right after learning"))
    return figure


def cost_accuracy(groups: Methods, look: Mapping[str, Look], unit: str, sheet: Sheet = PAGE) -> Figure | None:
    """Compute seconds of training against ACC, a point per run and the mean per method; None where no run has both."""
    points = _points(groups, "cost.compute_seconds.train", "metrics.acc")
    if not points:
        return None
    figure = Figure(figsize=_size(sheet), layout="constrained")
    axes = figure.subplots()
    _scatter(axes, points, look, sheet)
    seconds = np.concatenate([p[:, 0] for p in points.values()])
    if seconds.min() > 0 and seconds.max() > 8 * seconds.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    else:
        axes.set_xlim(left=0)
    axes.set_xlabel(f"training ({compute_unit([r for runs in groups.values() for r in runs])})")
    axes.set_ylabel(_label(sheet, "ACC", f"mean {unit} over all tasks at the end"))
    return figure


def _size(sheet: Sheet) -> tuple[float, float]:
    return (sheet.width, 2.7) if sheet.narrow else (0.72 * sheet.width, 4.4)


def _label(sheet: Sheet, name: str, meaning: str) -> str:
    """The name and what it means, or the name alone where there is no room; the caption says it too."""
    return name if sheet.narrow else f"{name} ({meaning})"


def _points(groups: Methods, x: str, y: str) -> dict[str, np.ndarray]:
    points = {m: np.array([[number(r, x), number(r, y)] for r in runs]) for m, runs in groups.items()}
    points = {m: p[~np.isnan(p).any(axis=1)] for m, p in points.items()}
    return {m: p for m, p in points.items() if len(p)}


def _scatter(axes, points: Mapping[str, np.ndarray], look: Mapping[str, Look], sheet: Sheet) -> None:
    share = 0.5 if sheet.narrow else 1.0
    for method, runs in points.items():
        color, marker = look[method].color, look[method].marker
        if len(runs) > 1:
            axes.scatter(*runs.T, s=22 * share, color=color, marker=marker, alpha=0.45, linewidths=0)
        mean = runs.mean(axis=0)
        axes.scatter(
            *mean,
            s=95 * share,
            color=color,
            marker=marker,
            zorder=3,
            label=sheet.short(method, LEGEND),
            edgecolors="white",
        )
    axes.margins(0.12)
    if sheet.narrow:
        handles, labels = axes.get_legend_handles_labels()
        legend_above(axes.figure, handles, labels, sheet)
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def _equal_accuracy(axes, tasks: int) -> None:
    """Lines of equal ACC. They are straight, since ACC = learning accuracy + BWT (T - 1) / T."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    share = (tasks - 1) / tasks
    low, high = left + share * bottom, right + share * top
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / s <= 9), 1.0)
    for acc in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step + 0.0:  # there is no -0
        axes.plot([left, right], [(acc - left) / share, (acc - right) / share], color=FAINT, linewidth=0.9, zorder=0)
        x, y = acc - share * bottom, (acc - right) / share
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        label = {
            "fontsize": 7,
            "color": MUTED,
            "textcoords": "offset points",
            "va": "center",
            "bbox": paper,
            "zorder": 2,
        }
        if left < x < right:
            axes.annotate(f"ACC {acc:.2g}", (x, bottom), xytext=(-14, 8), **label)
        elif bottom < y < top:
            axes.annotate(f"ACC {acc:.2g}", (right, y), xytext=(-6, 3), ha="right", **label)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.grid(False)
    axes.tick_params(colors=MUTED, labelcolor=INK)
