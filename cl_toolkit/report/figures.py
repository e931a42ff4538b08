"""The figures of a report. No global state: a figure is an object, and settings are active only while it is drawn."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cl_toolkit.errors import UserError
from cl_toolkit.report import autopsy
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.curves import STEPS, Since, forgetting_curves
from cl_toolkit.report.front import Front, draw_front
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import Record, scores
from cl_toolkit.report.style import INK, LEGEND, PAGE, TICK, Sheet, looks
from cl_toolkit.report.tradeoffs import cost_accuracy, learning_retention
from cl_toolkit.runs.checkpoint import replace_file


@dataclass(frozen=True)
class Plot:
    """A drawn figure: the name of its files, what to call it, how to read it, and its SVG for a page. A notebook shows it."""

    name: str
    title: str
    caption: str
    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


def draw(comparison: Comparison, folder: Path, sheet: Sheet = PAGE, front: Front | None = None) -> list[Plot]:
    """Draw what the finished runs allow, and the front where there is one, write `<name>.png` and `<name>.svg` (or the sheet's
    formats) into the folder, and return the plots.

    Figures of an earlier build are deleted first. The same records give the same bytes. Raises OSError if the folder
    cannot be written, UserError if it is a link: nothing is written elsewhere than where it seems to be.
    """
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link; remove it, so that figures are not written elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if OWN_FILES.fullmatch(path.name):
            path.unlink()
    return list(drawn(comparison, folder, sheet, front=front))


def drawn(
    comparison: Comparison,
    folder: Path | None = None,
    sheet: Sheet = PAGE,
    wanted: tuple[str, ...] = ("",),
    since: Since = STEPS,
    front: Front | None = None,
) -> Iterator[Plot]:
    """The plots one by one. folder: where their files go; None: nowhere. wanted: how the names of those wanted begin. since:
    how forgetting curves are drawn."""
    with warnings.catch_warnings(), matplotlib.rc_context(dict(sheet.rc)):
        # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing")
        for name, title, caption, make in _figures(comparison, sheet, since, front):
            if name.startswith(wanted) and (figure := make()):
                with matplotlib.rc_context({"svg.hashsalt": name}):
                    files = _files(figure, sheet.formats)
                if folder is not None:
                    for ending, content in files.items():
                        _write(folder / f"{name}.{ending}", content)
                yield Plot(name, title, caption, _for_page(files["svg"].decode(), name, title))


NO_DATES = {
    "pdf": ("CreationDate", "Creator", "Producer"),
    "png": ("Software",),
    "svg": ("Date", "Creator", "Format", "Type"),
}
"""What each format would say of the place and time of the drawing."""


def _files(figure: Figure, formats: Sequence[str]) -> dict[str, bytes]:
    """Format -> content."""
    FigureCanvasAgg(figure)
    files = {}
    for ending in formats:
        content = io.BytesIO()
        figure.savefig(content, format=ending, metadata=dict.fromkeys(NO_DATES[ending]))
        files[ending] = content.getvalue()
        figure.set_layout_engine("none")  # it is laid out now
    return files


def _write(path: Path, content: bytes) -> None:
    replace_file(path, lambda beside: beside.write_bytes(content))


def _for_page(text: str, name: str, title: str) -> str:
    svg = re.sub(r"^.*?(?=<svg )", "", text, flags=re.DOTALL)
    # several figures share a page, and an id may stand there once only
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _figures(
    comparison: Comparison, sheet: Sheet, since: Since, front: Front | None
) -> Iterator[tuple[str, str, str, Callable[[], Figure | None]]]:
    """Name, title, caption, and what draws the figure: None where the runs do not allow it."""
    groups, look = comparison.methods, looks(comparison)
    unit, lower = comparison.unit, comparison.lower
    orders = {str(r["order"]): list(r["tasks"]) for runs in groups.values() for r in runs}
    for number, (order, tasks) in enumerate(sorted(orders.items()), 1):
        chosen = {m: same for m, runs in groups.items() if (same := [r for r in runs if str(r["order"]) == order])}
        suffix, label = (f"-{number}", f", order {order}") if len(orders) > 1 else ("", "")
        label = re.sub(r'[<>&"]', "", label)
        for name, title, its in (
            ("curves", "Forgetting curves", since),
            ("losses", "Losses", replace(since, of="loss")),
        ):
            draw_curves = partial(forgetting_curves, chosen, tasks, look, unit, sheet, its)
            yield f"{name}{suffix}", f"{title}{label}", its.caption, draw_curves
        caption = MATRIX + f" Tasks in the order in which they were learned: {', '.join(tasks)}."
        draw_matrices = partial(matrices, chosen, tasks, unit, lower, sheet)
        yield f"matrix{suffix}", f"Score on every task after every task{label}", caption, draw_matrices
    untold = autopsy.left_out(groups)
    yield (
        "kinds",
        "Which kind of forgetting",
        f"{autopsy.CAPTION} {untold}".strip(),
        partial(autopsy.stacked, groups, sheet),
    )
    caption = RETENTION + ("" if lower else " " + ISO)
    yield (
        "retention",
        "Learning against retention",
        caption,
        partial(learning_retention, groups, look, unit, lower, sheet),
    )
    told = "" if front is None else front.caption
    yield "front", "The front over learning rates", told, partial(draw_front, front, sheet)
    yield "cost", "Cost beside accuracy", COST, partial(cost_accuracy, groups, look, unit, sheet)


MATRIX = (
    "Row: what had been trained so far. Column: the task that is scored. Framed cells were learned just then; below "
    "them in a column is what became of it. Hatched cells were not evaluated. Means over runs."
)
RETENTION = (
    "Small points are runs, large ones the mean of a method. Further right learned more, further up kept more. A "
    "method far to the left cannot forget much, so compare points of similar learning accuracy."
)
ISO = "Along a slanted line the final accuracy ACC is the same."
COST = (
    "CPU or GPU seconds spent training, without evaluation, and the mean score over all tasks at the end. Small points "
    "are runs, large ones the mean of a method."
)
MOST_TASKS = 10
"""Tasks up to which a cell of a matrix has room for its number."""
OWN_FILES = re.compile(r"(curves|losses|matrix|kinds|retention|front|cost)(-\d+)?\.(png|svg|pdf)")


def matrices(groups: Methods, tasks: Sequence[str], unit: str, lower: bool = False, sheet: Sheet = PAGE) -> Figure:
    """A heat map per method: rows are what was trained, columns what is scored. The runs share one task order."""
    means = {method: _mean_matrix(runs) for method, runs in groups.items()}
    known = np.concatenate([m[~np.isnan(m)] for m in means.values()] or [[]])
    low, high = (0.0, 1.0) if not known.size or (known.min() >= 0 and known.max() <= 1) else (known.min(), known.max())
    ticks = [sheet.short(task, TICK) for task in tasks]
    longest = 0.062 * max(11, *map(len, ticks)) if sheet.narrow else 0.0  # inches; "nothing yet" has 11 letters
    columns = sheet.across(len(means), 0.25 * min(len(tasks), MOST_TASKS), taken=longest + 1)
    rows = -(-len(means) // columns)
    if sheet.narrow:
        size = sheet.width, rows * (0.27 * len(tasks) + 0.7) + longest
    else:
        side = max(1.5, min(0.42 * len(tasks), 4.0)) + 0.8
        size = sheet.width * (1.0 if columns == sheet.panels else 0.34 * columns + 0.1), rows * side
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for i, axes in enumerate(panels.flat):
        if i >= len(means):
            axes.remove()
            continue
        method = list(means)[i]
        mesh = _heat_map(axes, means[method], tasks, low, high, lower)
        title = sheet.short(method, LEGEND) + (f" (n = {len(groups[method])})" if len(groups[method]) > 1 else "")
        axes.set_title(_wrapped(title, TICK + 1 if columns > 1 else LEGEND + 2) if sheet.narrow else title)
        if i % columns == 0:
            axes.set_yticks(np.arange(len(tasks) + 1) + 0.5, ["nothing yet", *ticks])
            axes.set_ylabel("trained up to")
        if i + columns >= len(means):
            turned = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(tasks) <= 8 else {"rotation": 90}
            axes.set_xticks(np.arange(len(tasks)) + 0.5, ticks, **turned)
    bar = figure.colorbar(mesh, ax=figure.axes, fraction=0.04, pad=0.02, label=unit)
    bar.outline.set_visible(False)
    assert bar.solids is not None  # those of the mesh
    bar.solids.set(
        rasterized=not sheet.narrow, edgecolor="face" if sheet.narrow else "none"
    )  # a paper's is lines alone
    return figure


def _wrapped(title: str, letters: int) -> str:
    """The title in lines of so many letters, `(n = 3)` in one piece."""
    return textwrap.fill(title.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"), letters)


def _mean_matrix(runs: Sequence[Record]) -> np.ndarray:
    stack = np.stack([scores(r["matrix"]) for r in runs])
    counts = (~np.isnan(stack)).sum(0)
    return np.where(counts > 0, np.nansum(stack, 0) / np.maximum(counts, 1), np.nan)


def _heat_map(axes, matrix: np.ndarray, tasks: Sequence[str], low: float, high: float, lower: bool):
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.add_patch(
        Rectangle((0, 0), *matrix.shape[::-1], facecolor="#f4f6f8", hatch="////", edgecolor="#b6bec9", linewidth=0)
    )
    shades = matplotlib.colormaps["Blues_r" if lower else "Blues"]
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(matrix), cmap=shades, vmin=low, vmax=high, edgecolors="white", linewidth=1
    )
    learned = not np.isnan(np.diag(matrix[1:])).any()
    for (row, column), value in np.ndenumerate(matrix):
        if not np.isnan(value) and len(tasks) <= MOST_TASKS:
            dark = (value - low) / ((high - low) or 1) > 0.55
            ink = "white" if dark != lower else INK
            axes.text(column + 0.5, row + 0.5, _short(value), ha="center", va="center", fontsize=_small(), color=ink)
        if learned and row == column + 1:
            axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=INK, linewidth=1.2))
    axes.set_xlim(0, matrix.shape[1])
    axes.set_ylim(matrix.shape[0], 0)
    axes.set_xticks([])
    axes.set_yticks([])
    return mesh


def _small() -> float:
    """Points of the small print."""
    return matplotlib.rcParams["font.size"] - 1


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
