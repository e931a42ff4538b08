"""Which kind of forgetting, as a page says it: of what each earlier task lost by the end, how much was its form, and how much
what is said. The numbers are those of the probe `autopsy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from cl_toolkit.report.estimate import Estimate, decimals, over_orders, signed
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import Record, number
from cl_toolkit.report.style import INK, LEGEND, PAGE, PALETTE, TICK, Sheet, legend_above

PARTS = {"essential": ("what is said", PALETTE[0], ""), "superficial": ("its form alone", PALETTE[4], "////")}
"""Part of a drop -> what was lost, its colour, its hatching."""
NUMBERS = ("drop", "superficial", "essential", "strict", "content", "valid", "reminded")


@dataclass(frozen=True)
class Kinds:
    """What became of a method's task by the end: estimates over orders or seeds, None where no run tells."""

    method: str
    task: str
    numbers: Mapping[str, Estimate | None]


def rows(record: Record) -> list[Mapping[str, Any]]:
    """What the probe has found in a run."""
    return list((record.get("probes") or {}).get("autopsy", ()))


def at_the_end(record: Record) -> Iterator[Mapping[str, Any]]:
    """Its rows of the last stage, of the tasks that were learned before."""
    found = rows(record)
    last = max((row["row"] for row in found), default=0)
    first = {row["scored"]: row["row"] for row in reversed(found)}
    return (row for row in found if row["row"] == last and first[row["scored"]] < last)


def kinds(methods: Methods) -> list[Kinds]:
    """A row per method and task."""
    made = []
    for method, runs in methods.items():
        found = [(str(run.get("order")), row) for run in runs for row in at_the_end(run)]
        for task in dict.fromkeys(row["scored"] for _, row in found):
            own = [(order, row) for order, row in found if row["scored"] == task]
            numbers = {k: over_orders([(order, number(row, k), 0.0) for order, row in own]) for k in NUMBERS}
            made.append(Kinds(method, task, numbers))
    return made


def left_out(methods: Methods) -> str:
    """A sentence on the tasks whose score does not tell form and content apart; "" without any, or without the probe."""
    untold: dict[str, list[str]] = {}
    for record in (run for runs in methods.values() for run in runs if rows(run)):
        told = {row["scored"] for row in rows(record)}
        for task, scorer in zip(record["tasks"], record.get("scorers") or (), strict=False):
            if task not in told and task not in untold.setdefault(scorer, []):
                untold[scorer].append(task)
    parts = [f"{', '.join(tasks)} ({scorer})" for scorer, tasks in untold.items() if tasks]
    if not parts:
        return ""
    return f"Left out, since the score is not right or wrong as a whole of a written answer: {'; '.join(parts)}."


def table(found: Sequence[Kinds]) -> list[list[str]]:
    """The page's rows: method, task, drop, form, content, answers in the right form, score with a reminder."""

    def told(estimate: Estimate | None, of: Any) -> str:
        return "-" if estimate is None else of(estimate)

    def lost(estimate: Estimate) -> str:
        return signed(estimate.mean) + (f" ({estimate.interval}, n={estimate.n})" if estimate.n > 1 else "")

    return [
        [kind.method, kind.task, *(told(kind.numbers[k], lost) for k in ("drop", "superficial", "essential")),
         *(told(kind.numbers[k], lambda e: decimals(e.mean)) for k in ("strict", "valid", "reminded"))]
        for kind in found
    ]  # fmt: skip


CAPTION = (
    "What of each earlier task's score was lost between its own end and the end of training, mean over runs. Hatched: answers "
    "that still say the right thing, in a form that does not count (superficial). Plain: answers that no longer say it "
    "(essential). To the left of 0: gained. The dark mark is their sum, the drop of the score."
)


def stacked(methods: Methods, sheet: Sheet = PAGE) -> Figure | None:
    """A panel per task, a stacked bar per method; None where no run has the probe or nothing was learned after a task."""
    found = kinds(methods)
    tasks = list(dict.fromkeys(kind.task for kind in found))
    if not tasks:
        return None
    names = [m for m in methods if any(kind.method == m for kind in found)]
    columns = sheet.across(len(tasks), 1.0, taken=1.2)
    grid_rows = -(-len(tasks) // columns)
    height = grid_rows * (0.24 * len(names) + 0.55) + 0.6
    full = sheet.narrow or columns == sheet.panels
    figure = Figure(figsize=(sheet.width if full else 3.4 * columns + 1.2, height), layout="constrained")
    grid = figure.subplots(grid_rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(tasks) :]:
        axes.remove()
    for axes, task in zip(grid.flat, tasks, strict=False):
        axes.set_title(sheet.short(task, TICK))
        own = {k.method: {p: e.mean for p, e in k.numbers.items() if e} for k in found if k.task == task}
        _bars(axes, [own.get(name, {}) for name in names])
        axes.set_yticks(range(len(names)), [sheet.short(name, LEGEND) for name in names])
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.use_sticky_edges = False
        axes.margins(x=0.06)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    grid[0, 0].invert_yaxis()
    figure.supxlabel("lost by the end", fontsize=axes.xaxis.label.get_size(), color=INK)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    legend_above(figure, handles, labels, sheet)
    return figure


def _bars(axes, values: Sequence[Mapping[str, float]]) -> None:
    """One stacked bar for each, gains to the left of 0 and losses to the right; a method without numbers has none."""
    ends = {True: [0.0] * len(values), False: [0.0] * len(values)}
    for part, (label, color, hatch) in PARTS.items():
        widths = [value.get(part, 0.0) for value in values]
        starts = [ends[width >= 0][i] for i, width in enumerate(widths)]
        axes.barh(range(len(values)), widths, 0.66, starts, color=color, hatch=hatch, edgecolor="white", linewidth=0.5,
                  label=f"lost: {label}")  # fmt: skip
        for i, width in enumerate(widths):
            ends[width >= 0][i] += width
    for i, value in enumerate(values):
        if "drop" in value:
            axes.plot([value["drop"]] * 2, [i - 0.4, i + 0.4], color=INK, linewidth=1.6)
