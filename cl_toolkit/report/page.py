"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cl_toolkit.report import autopsy
from cl_toolkit.report.cautions import cautions
from cl_toolkit.report.choices import section
from cl_toolkit.report.columns import COLUMNS, RANKED, Column, amount, cell, more_is_better
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.costs import reuse_sentence
from cl_toolkit.report.estimate import decimals
from cl_toolkit.report.figures import Plot
from cl_toolkit.report.findings import findings, parted
from cl_toolkit.report.headline import headline
from cl_toolkit.report.lasting import lasting
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import Record, chance, lookup, number, one_level, scores
from cl_toolkit.report.style import looks
from cl_toolkit.report.tables import told, undefined

PROVENANCE = (
    ("Commit", "provenance.commit"),
    ("Uncommitted changes", "provenance.dirty"),
    ("Versions", "provenance.versions"),
    ("Hardware", "provenance.hardware"),
    ("Data", "identity.data"),
    ("Start model", "identity.model"),
    ("Code", "identity.code"),
    ("Started", "provenance.started"),
    ("Finished", "provenance.finished"),
)


def render(comparison: Comparison, plots: Sequence[Plot], notes: Sequence[str] = ()) -> str:
    """The page as text. Everything that comes from a record is escaped; only the plots' SVG goes in as it is."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["typeset"] = _typeset
    return environment.get_template("page.html").render(_content(comparison, plots, notes))


def _typeset(text: str) -> str:
    """A real minus sign before numbers, and no line break around ±."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _content(comparison: Comparison, plots: Sequence[Plot], notes: Sequence[str]) -> dict[str, Any]:
    records, groups, look = comparison.records, comparison.methods, looks(comparison)
    differing, common = _settings(groups)
    first, later = parted(findings(comparison))
    return {
        "title": str(next((r["name"] for r in records if r.get("name")), "comparison")),
        "facts": _facts(comparison),
        "headline": headline(comparison),
        "findings": first,
        "not_told": later,
        "cautions": [*cautions(comparison), *notes],
        "colors": {method: look[method].color for method in groups},
        "headers": [(c.label, "↑" if more_is_better(c, comparison.lower) else "↓") for c in RANKED],
        "ranking": _ranking(comparison),
        "undefined": undefined(comparison),
        "columns": COLUMNS,
        "other_columns": _other_columns(comparison),
        "anchors": _anchors(groups),
        "lasting": lasting(comparison),
        "kinds": autopsy.table(autopsy.kinds(groups)),
        "told": _told(comparison),
        "plots": [(plot, Markup(plot.svg)) for plot in plots],
        "differing": differing,
        "choices": section(comparison),
        "common": common,
        "runs": _runs(groups),
        "reused": reuse_sentence(comparison.runs),
        "unfinished": [r for r in records if r.get("status") != "finished"],
        "provenance": _provenance(comparison.runs or records),
    }


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared, in a few words each."""
    runs = comparison.runs

    def values(path: str) -> list[str]:
        return list(dict.fromkeys(str(v) for r in runs if (v := lookup(r, path)) is not None))

    orders = {str(r["order"]): " → ".join(r["tasks"]) for r in runs}
    facts = [
        ("Methods", str(len(comparison.methods))),
        ("Runs", f"{len(runs)} finished of {len(comparison.records)}"),
        ("Seeds", ", ".join(sorted(values("seed"), key=lambda s: (len(s), s)))),
        ("Model", ", ".join(values("config.model.name"))),
        ("Tasks" if len(orders) < 2 else "Task orders", "; ".join(orders[o] for o in sorted(orders))),
    ]
    levels = sorted({level for r in runs if not math.isnan(level := chance(r))})
    if levels and not comparison.lower:
        shown = dict.fromkeys((decimals(levels[0]), decimals(levels[-1])))
        facts.append(("Chance", f"{' to '.join(shown)} on average at the end"))
    sizes = sorted({n for r in runs for n in r.get("examples_scored") or () if n})
    if sizes:
        facts.append(
            ("Scored on", f"{' to '.join(str(n) for n in dict.fromkeys((sizes[0], sizes[-1])))} examples a task")
        )
    if kept := list(dict.fromkeys(str(r["budget"]).replace("_", " ") for r in runs if r.get("budget"))):
        facts.append(("Budget", f"equally many {' or '.join(kept)} for each method"))
    return [(name, text) for name, text in facts if text]


def _ranking(comparison: Comparison) -> list[dict[str, Any]]:
    """Rows of the ranking; `bar` is the percentage that ACC fills, None where scores are not between 0 and 1."""
    table = comparison.ranking
    between = bool(table["acc"].dropna().between(0, 1).all()) and not comparison.lower
    return [
        {
            "method": method,
            "note": "" if comparison.regime(method)["is_method"] else comparison.regime(method)["does"],
            "n": int(row["runs"]),
            "cells": [cell(row, m) for m in RANKED],
            "bar": round(100 * row["acc"], 1) if between and not pd.isna(row["acc"]) else None,
        }
        for method, row in table.iterrows()
    ]


def _other_columns(comparison: Comparison) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Labels and rows of the columns that are not in the ranking; those that no run has are left out."""
    table = comparison.ranking
    shown = [m for m in COLUMNS if not m.ranked and table[f"{m.key}_n"].sum()]
    return [m.label for m in shown], [(name, [cell(row, m) for m in shown]) for name, row in table.iterrows()]


def _anchors(groups: Methods) -> list[tuple[str, str, str, str]]:
    """(method, anchor, score before training, at the end), means over runs."""
    rows = []
    for method, runs in groups.items():
        matrices = [scores(r["anchor_matrix"]) for r in runs if r.get("anchors")]
        for i, name in enumerate(runs[0].get("anchors") or ()):
            before, end = (sum(m[row][i] for m in matrices) / len(matrices) for row in (0, -1))
            rows.append((method, name, decimals(before), decimals(end)))
    return rows


def _told(comparison: Comparison) -> dict[str, Any]:
    """`columns` and `rows` of what strategies have noted."""
    rows = told(comparison)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "rows": [[row.get(name, "-") for name in columns] for row in rows]}


def _settings(groups: Methods) -> tuple[list[tuple[str, list[tuple[str, Any]]]], list[tuple[str, Any]]]:
    """(per method the settings that are not the same for all methods, the settings that are). Settings that vary
    within a method, such as the seed, are in neither."""
    flat = {method: [one_level(r.get("config") or {}) for r in runs] for method, runs in groups.items()}
    keys = dict.fromkeys(key for runs in flat.values() for run in runs for key in run)
    fixed = [k for k in keys if all(len({str(run.get(k)) for run in runs}) == 1 for runs in flat.values())]
    common = [k for k in fixed if len({str(runs[0].get(k)) for runs in flat.values()}) == 1] if len(flat) > 1 else fixed
    differing = {
        method: [(k, runs[0][k]) for k in fixed if k not in common and runs[0].get(k) is not None]
        for method, runs in flat.items()
    }
    first = next(iter(flat.values()))[0] if flat else {}
    return list(differing.items()), [(k, first[k]) for k in common if first.get(k) is not None]


def _runs(groups: Methods) -> list[list[str]]:
    """A row per finished run: method, order, seed, then the ranked metrics."""

    def shown(run: Record, column: Column) -> str:
        value = number(run, column.path)
        return "-" if pd.isna(value) else (decimals if column.score else amount)(value)

    return [
        [method, str(run["order"]), str(run["seed"]), *(shown(run, m) for m in RANKED)]
        for method, runs in groups.items()
        for run in runs
    ]


def _provenance(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Label and the distinct values over all runs; of times the first start and the last end."""
    rows = []
    for label, path in PROVENANCE:
        found = [lookup(r, path) for r in records]
        texts = [_text(v) for v in found if v is not None]
        if path.endswith("started"):
            texts = sorted(texts)[:1]
        if path.endswith("finished"):
            texts = sorted(texts)[-1:]
        rows.append((label, list(dict.fromkeys(texts)) or ["not recorded"]))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in sorted(one_level(value).items()) if v is not None)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
