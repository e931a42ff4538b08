"""Forgetting curves, drawn: a panel per task, a line per method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from cl_toolkit.report.fits import GOOD, fitted
from cl_toolkit.report.forgetting import AXES, Curve, curve, less_is_better, points
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import Record, guessing, lookup, scores
from cl_toolkit.report.style import FAINT, INK, LEGEND, MUTED, PAGE, TICK, Look, Sheet, legend_above


@dataclass(frozen=True)
class Since:
    """What a forgetting curve is drawn against, of `AXES`, and whether the fits that may be stated are drawn over it. of: what
    is drawn, a point's `value` or its `loss`."""

    axis: str = "steps"
    fits: bool = False
    of: str = "value"

    @property
    def label(self) -> str:
        """Of the x axis."""
        return f"{AXES[self.axis][1]} since the task was learned"

    @property
    def caption(self) -> str:
        """How to read the figure."""
        what = SCORES if self.of == "value" else LOSSES
        thin = f" Thin dark lines are fits; none is drawn where R² is below {GOOD}." if self.fits else ""
        return f"{what} {CAPTION.format(counted=AXES[self.axis][1])}{SCORED if self.of == 'value' else ''} {NEXT}{thin}"


STEPS = Since()
SCORES = "How well each task is still done while the next ones are trained."
LOSSES = (
    "The loss of each task's right answers, in nats per token, while the next ones are trained: it moves where a score can no "
    "longer fall."
)
CAPTION = (
    "One panel per task; the x axis counts {counted} since that task was learned, 0 being its own end (linear up to the "
    "first point, then logarithmic). Lines are means over runs; bands are ± one standard deviation, or minimum to maximum "
    "where there are two runs; one run has no band."
)
SCORED = " A level dashed line: a model that saw all tasks at once, at its end. Dotted: the score of pure guessing."
NEXT = "Vertical lines mark where the next task begins, if all methods take the same steps."


def forgetting_curves(
    groups: Methods,
    tasks: Sequence[str],
    look: Mapping[str, Look],
    unit: str,
    sheet: Sheet = PAGE,
    since: Since = STEPS,
) -> Figure | None:
    """A panel per task that something was learned after; None where no run has such a curve with this axis. The runs share one
    task order, so that a step means the same in each."""
    curves = {m: {task: _known(curve(runs, task, since.of), since) for task in tasks} for m, runs in groups.items()}
    panels = [task for task in tasks if any(c[task] for c in curves.values())]
    if not panels:
        return None
    columns = sheet.across(len(panels), 1.5)
    rows = -(-len(panels) // columns)
    full = sheet.narrow or columns == sheet.panels
    height = 1.4 * rows + 0.4 + 0.17 * -(-len(groups) // sheet.legend) if sheet.narrow else 2.9 * rows + 0.5
    figure = Figure(figsize=(sheet.width if full else 4.4 * columns, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    handles = {}
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, task in zip(grid.flat, panels, strict=False):
        axes.set_title(sheet.short(task, TICK))
        drawn = {m: c for m, by_task in curves.items() if (c := by_task[task])}
        for method, found in drawn.items():
            handles[method] = _line(axes, found, look[method], since)
            if since.fits and (fit := fitted(found, since.of == "loss" or less_is_better(groups[method][0], task))):
                axes.plot(found.times[since.axis], fit(found.lags), color=INK, linewidth=0.8, zorder=4)
        for method, runs in groups.items():
            if since.of == "value" and method not in drawn and lookup(runs[0], "regime.upper_bound"):
                ends = [scores(r["matrix"])[-1, tasks.index(task)] for r in runs]
                handles[method] = axes.axhline(
                    np.nanmean(ends), color=look[method].color, linestyle=look[method].dash, linewidth=1.2
                )
        times = [found.times[since.axis] for found in drawn.values()]
        _decorate(axes, min(t[1] for t in times), max(t[-1] for t in times))
        _mark(axes, groups, task, sheet, since)
    for axes in grid[:, 0]:
        axes.set_ylabel(unit if since.of == "value" else "loss (nats per token)")
    size = matplotlib.rcParams["font.size"]
    figure.supxlabel(since.label, fontsize=size, color=INK)
    names = [m for m in groups if m in handles]
    shown = [sheet.short(m, LEGEND) for m in names]
    legend_above(figure, [handles[m] for m in names], shown, sheet)
    return figure


def _known(found: Curve | None, since: Since) -> Curve | None:
    """The curve, where it has this axis and more than its own end."""
    return found if found and len(found.lags) > 1 and (found.times[since.axis][1:] > 0).all() else None


def _line(axes, found: Curve, look: Look, since: Since):
    times, values = found.times[since.axis], found.values
    mean = values.mean(axis=0)
    if len(values) == 2:
        low, high = values.min(axis=0), values.max(axis=0)
    else:
        spread = values.std(axis=0, ddof=1) if len(values) > 2 else np.zeros(len(times))
        low, high = mean - spread, mean + spread
    if len(values) > 1:
        axes.fill_between(times, low, high, color=look.color, alpha=0.16, linewidth=0)
    return axes.plot(times, mean, color=look.color, linestyle=look.dash, marker=look.marker, markersize=3.5,
                     markevery=max(1, len(times) // 8))[0]  # fmt: skip


def _decorate(axes, first: float, last: float) -> None:
    """The x axis: linear up to the first power of ten that holds a point, then logarithmic."""
    begin = 10 ** max(0, int(np.floor(np.log10(first))))
    axes.set_xscale("symlog", linthresh=begin, linscale=0.5)
    axes.set_xlim(-0.15 * begin, last * 1.15)
    exponents = range(int(np.log10(begin)), int(np.log10(max(last, begin))) + 1)
    ticks = [0, *(10**k for k in exponents)]
    axes.set_xticks(ticks, [f"{t:g}" if t < 10_000 else f"{t:.0e}".replace("e+0", "e") for t in ticks])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.margins(y=0.08)


def _mark(axes, groups: Methods, task: str, sheet: Sheet, since: Since) -> None:
    """The score of guessing, and where the next tasks begin."""
    first = next(iter(groups.values()))[0]
    starts = [s for runs in groups.values() for r in runs if (s := _next_tasks(r, task, since))]
    if since.of == "value":
        _guessing(axes, first, task, starts[0] if starts else {task: 0.0})
    if starts and all(s == starts[0] for s in starts):
        labelled = 0.0
        for name, at in list(starts[0].items())[1:]:
            axes.axvline(at, color=FAINT, linewidth=1.2, zorder=0)
            if at > 1.35 * labelled:  # the names of nearer ones would overlap on a logarithmic axis
                label = sheet.short(name, TICK)
                axes.annotate(label, (at, 1), xycoords=("data", "axes fraction"), xytext=(2, -2), va="top", rotation=90,
                              textcoords="offset points", fontsize=7, color=MUTED)  # fmt: skip
                labelled = at


def _guessing(axes, record: Record, task: str, starts: Mapping[str, float]) -> None:
    """The score of pure guessing: it falls where the answers of further tasks come to be choices."""
    names, levels = record["tasks"], guessing(record)
    steps = [(at, levels[names.index(name) + 1, names.index(task)]) for name, at in starts.items()]
    steps = [(at, level) for at, level in steps if not np.isnan(level)]
    if any(level for _, level in steps):
        times, values = zip(*steps, (axes.get_xlim()[1], steps[-1][1]), strict=True)
        axes.step(times, values, where="post", color=MUTED, linestyle=":", linewidth=1)


def _next_tasks(record: Record, task: str, since: Since) -> dict[str, float]:
    """Task trained later -> where its training began: at the last point seen under the one before."""
    found, key = list(points(record, task).values()), AXES[since.axis][0]
    ends: dict[str, float] = {}
    for point in found:
        if point.get(key) is not None and found[0].get(key) is not None:
            ends[point["trained"]] = max(point[key] - found[0][key], ends.get(point["trained"], 0))
    names = sorted(ends, key=ends.__getitem__)
    return {name: ends[before] for before, name in itertools.pairwise(names)}
