"""The front: what was gained on the new tasks against what was lost on the old ones, over all learning rates of a method.

A method at one rate is a point, and a smaller rate buys retention with learning. So methods are compared by what each reaches
over its rates (after Pareto; as a figure of continual learning e.g. Biderman et al. 2024, arXiv 2405.09673, ours in detail).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from matplotlib.figure import Figure

from cl_toolkit.errors import UserError
from cl_toolkit.report.comparison import BWT, LEARNING, Comparison
from cl_toolkit.report.estimate import over_orders
from cl_toolkit.report.likeness import OWN, check_unmixed, settings, within
from cl_toolkit.report.methods import Methods, by_method, in_order
from cl_toolkit.report.reading import Record, lookup, lower_is_better, number, scores, trusted
from cl_toolkit.report.style import INK, LEGEND, MARKERS, MUTED, PAGE, PALETTE, Look, Sheet, legend_above, looks

RATE = "train.learning_rate"
KEPT = {"kept": "BWT", "general": "change in general ability"}
"""What may be lost -> what it is called."""


@dataclass(frozen=True)
class Point:
    """A method at one rate: means over its runs, those of an order first, turned so that more is better; NaN where a number is
    not defined. line: what but the rate it is set to. general: what anchors and tasks of lm_eval have changed by."""

    family: str
    line: str
    rate: float
    learned: float
    kept: float
    general: float


def general_ability(record: Record) -> float:
    """By how much what the start model could do has changed at the end: the mean over anchors (where of some more is better,
    over those) and over the tasks of lm_eval by their first metric. NaN without any."""
    better = list(record.get("anchor_higher_is_better") or [True] * len(record.get("anchors") or ()))
    changes = []
    if better:
        matrix = scores(record["anchor_matrix"])
        moved = [float(matrix[-1, i] - matrix[0, i]) * (1 if up else -1) for i, up in enumerate(better)]
        changes = [m for m, up in zip(moved, better, strict=True) if up == any(better) and not math.isnan(m)]
    rows = (record.get("probes") or {}).get("lm_eval", ())
    metrics = {row["task"]: row["metric"] for row in reversed(rows)}
    for task, metric in metrics.items():
        own = [row["value"] for row in rows if (row["task"], row["metric"]) == (task, metric)]
        changes.append(own[-1] - own[0])
    return sum(changes) / len(changes) if changes else math.nan


def kind_of(record: Record) -> tuple:
    """What two settings of one method share: all but the rate, the seed and what its strategies are set to."""
    flat = settings(record, (*OWN, RATE, "evaluate"))
    return (
        *sorted((k, str(v)) for k, v in flat.items()),
        *sorted(lookup(record, "config.strategies") or ()),
        str(lookup(record, "regime.name")),
    )


def families(methods: Methods, known: Mapping[tuple, str]) -> dict[str, list[str]]:
    """What one method is called -> its settings. known: how a study calls it; else by what the names of its settings share."""
    kinds: dict[tuple, list[str]] = {}
    for method, runs in methods.items():
        kinds.setdefault(kind_of(runs[0]), []).append(method)
    found: dict[str, list[str]] = {}
    for kind, members in kinds.items():
        name = known.get(kind) or shared_name(members)
        found[members[0] if name in found else name] = members
    return found


def points(methods: Methods, of: Mapping[str, Sequence[str]]) -> list[Point]:
    """Every setting of every family, in order of its rate. One that lacks an order that others have is left out."""
    orders = max((len({str(r.get("order")) for r in runs}) for runs in methods.values()), default=0)
    found = []
    for family, members in of.items():
        own = []
        for runs in (methods[m] for m in members):
            if len({str(r.get("order")) for r in runs}) == orders:
                sign = -1 if lower_is_better(runs) else 1
                line, rate = str(lookup(runs[0], "config.strategies")), number(runs[0], f"config.{RATE}")
                learned, kept = sign * _mean(runs, LEARNING), sign * _mean(runs, BWT)
                own.append(Point(family, line, rate, learned, kept, _mean(runs, "")))
        found += sorted(own, key=lambda p: (p.line, p.rate))
    return found


def _mean(runs: Sequence[Record], path: str) -> float:
    """Of a metric, or without one of general ability."""
    own = [(str(r.get("order")), number(r, path) if path else general_ability(r), 0.0) for r in runs]
    estimate = over_orders(own)
    return math.nan if estimate is None else estimate.mean


def shared_name(members: Sequence[str]) -> str:
    """What names of one method at several rates share: `replay` of replay-1e-4 and replay-3e-5."""
    if len(members) == 1:
        return members[0]
    common = "".join(letters[0] for letters in takewhile(lambda of: len(set(of)) == 1, zip(*members, strict=False)))
    return re.sub(r"[-_. ]+[\d.e+-]*$", "", common) or members[0]


def pareto(found: Sequence[Point], of: str = "kept") -> list[Point]:
    """Those that no other beats: more learned and no less kept, or the other way round."""
    known = [p for p in found if not math.isnan(p.learned) and not math.isnan(getattr(p, of))]

    def beaten(p: Point, q: Point) -> bool:
        a, b = (p.learned, getattr(p, of)), (q.learned, getattr(q, of))
        return b[0] >= a[0] and b[1] >= a[1] and a != b

    return [p for p in known if not any(beaten(p, q) for q in known)]


@dataclass(frozen=True)
class Front:
    """The points of a sweep, or of a study whose methods differ in rate. split: of the data that they are scored on."""

    found: tuple[Point, ...]
    looks: Mapping[str, Look]
    split: str
    lower: bool

    @staticmethod
    def of(comparison: Comparison, sweep: Sequence[Record] = ()) -> Front | None:
        """sweep: the records of `cl-toolkit tune`; without them the comparison's own. None where nothing is tried at two rates.
        Raises UserError where the sweep is on another stream or model, or has no two rates of a method."""
        methods = comparison.methods
        if sweep:
            records = in_order([trusted(record) for record in sweep])
            methods = by_method(records)
            if not methods:
                raise UserError("--sweep: none of its runs has finished")
            check_unmixed(methods)
            check_ground(comparison.runs, [r for runs in methods.values() for r in runs])
        known = {kind_of(runs[0]): m for m, runs in comparison.methods.items()} if sweep else {}
        of = families(methods, known)
        found = points(methods, of)
        if not any(len({p.rate for p in found if p.family == family}) > 1 for family in of):
            if sweep:
                raise UserError(
                    "--sweep: no method is tried at two learning rates there, so that there is no front to draw"
                )
            return None
        runs, own = [r for its in methods.values() for r in its], looks(comparison)
        split = str(lookup(runs[0], "config.evaluate.split") or "test")
        spare = [Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], "-") for i in range(len(of))]
        drawn = {f: own.get(f) or own.get(of[f][0]) or spare[i] for i, f in enumerate(of)}
        return Front(tuple(found), drawn, split, lower_is_better(runs))

    def kinds(self) -> list[str]:
        """What may be lost, of what is known."""
        return [of for of in KEPT if any(not math.isnan(getattr(p, of)) for p in self.found)]

    def sentence(self) -> str:
        """Which methods have a point on the front, and which have none."""
        told = []
        for of in self.kinds():
            best, known = pareto(self.found, of), [p for p in self.found if not math.isnan(getattr(p, of))]
            counts = {
                p.family: (sum(q.family == p.family for q in best), sum(q.family == p.family for q in known))
                for p in known
            }
            on = [f"{f} ({n} of {total})" for f, (n, total) in counts.items() if n]
            off = [f for f, (n, _) in counts.items() if not n]
            behind = f"; without one: {', '.join(off)}" if off else ""
            told.append(f"On the front of learning and {KEPT[of]} have a point: {', '.join(on)}{behind}.")
        return " ".join(told)

    @property
    def caption(self) -> str:
        """How to read the figure, and what it says."""
        turned = " Scores of which less is better are turned." if self.lower else ""
        return f"{CAPTION} Scores are of {self.split} data.{turned} {self.sentence()}"


CAPTION = (
    "What was gained on the new (learning accuracy, to the right) against what was lost on the old (upwards is less), a point "
    "per setting: means over its runs, joined in order of the learning rate. Ringed, with their rates: no other setting is "
    "better in both (Pareto). Neighbours on the front may not be distinguishable: no test is made of it."
)


def check_ground(records: Sequence[Record], sweep: Sequence[Record]) -> None:
    """Raises UserError where a sweep was not made on the study's stream and model."""
    left_out = (*OWN, "model.adapter")
    here, there = (
        [
            {k: str(v) for k, v in settings(r, left_out).items() if within(k, ("stream", "model", "prompt"))}
            for r in runs
        ]
        for runs in (records, sweep)
    )
    for key in sorted({k for flat in (*here, *there) for k in flat}):
        mine, theirs = ({flat.get(key) for flat in flats} for flats in (here, there))
        if not mine & theirs:
            raise UserError(f"--sweep: is of another study: {key} is {_said(theirs)} there and {_said(mine)} here")


def _said(values: set[str | None]) -> str:
    return " or ".join(sorted(map(str, values)))


def draw_front(front: Front | None, sheet: Sheet = PAGE) -> Figure | None:
    """A panel for what was lost on the old tasks, and one for general ability where that is known."""
    kinds = front.kinds() if front else []
    if front is None or not kinds:
        return None
    rows = len(kinds) if sheet.narrow else 1
    columns = 1 if sheet.narrow else len(kinds)
    size = (sheet.width, 2.7 * rows) if sheet.narrow else (sheet.width * (0.72 if columns == 1 else 1), 4.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, of in zip(grid.flat, kinds, strict=True):
        _panel(axes, front, of, sheet)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    legend_above(figure, handles, labels, sheet)
    return figure


def _panel(axes, front: Front, of: str, sheet: Sheet) -> None:
    best, named = pareto(front.found, of), set()
    share = 0.5 if sheet.narrow else 1.0
    lines: dict[tuple[str, str], list[Point]] = {}
    for p in front.found:
        lines.setdefault((p.family, p.line), []).append(p)
    for (family, _), own in lines.items():
        look = front.looks[family]
        label = None if family in named else sheet.short(family, LEGEND)
        named.add(family)
        axes.plot([p.learned for p in own], [getattr(p, of) for p in own], color=look.color, linestyle=look.dash,
                  linewidth=1, marker=look.marker, markersize=5 * share**0.5, alpha=0.45, label=label)  # fmt: skip
    for p in best:
        look, at = front.looks[p.family], (p.learned, getattr(p, of))
        axes.scatter(*at, s=50 * share, color=look.color, marker=look.marker, linewidths=0, zorder=3)
        axes.scatter(*at, s=180 * share, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=3)
        axes.annotate(f"{p.rate:.0e}".replace("e-0", "e-"), at, xytext=(8, 6), textcoords="offset points",
                      fontsize=7, color=MUTED)  # fmt: skip
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.margins(0.14)
    axes.set_xlabel("learning accuracy" if sheet.narrow else "learning accuracy (mean score right after each task)")
    axes.set_ylabel(KEPT[of])
