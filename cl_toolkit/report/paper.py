"""A comparison as a paper needs it: figures, a table, a paragraph, references. Every file's name is ours, none a record's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.measure.metrics import METRICS
from cl_toolkit.report.comparison import Comparison
from cl_toolkit.report.figures import draw
from cl_toolkit.report.front import Front
from cl_toolkit.report.latex import SCORES, results, tex
from cl_toolkit.report.paragraph import components, setup
from cl_toolkit.report.reading import Record
from cl_toolkit.report.references import bibliography, cited
from cl_toolkit.report.style import PAPER
from cl_toolkit.runs.checkpoint import write_text

PLACES = re.compile(r"(?:[\w.~@:+-]*[/\\])+")
"""What stands before the last part of a path, an address on the web, or a repository's name."""
ADDRESSES = re.compile(r"\S+@\S+")


def write(records: Sequence[Record], folder: Path, papers: Mapping[str, str], anonymous: bool = False) -> Path:
    """Write `figures/*.pdf`, `figures/*.svg`, `results.tex`, `setup.tex` and `references.bib` into the folder, and return it.

    papers: strategy or objective -> the source that it names. anonymous: without the folders, addresses and owners in names,
    without version and commit of the code. The same records give the same bytes. Raises UserError without a finished run.
    """
    comparison = Comparison.of(nameless(records) if anonymous else records)
    if not comparison.runs:
        raise UserError(f"{folder}: no run has finished, so that there is nothing to print")

    def say(text: object) -> str:
        return tex(placeless(str(text)) if anonymous else text)

    folder.mkdir(parents=True, exist_ok=True)
    draw(comparison, folder / "figures", PAPER, Front.of(comparison))
    used = dict.fromkeys(name for run in comparison.runs for name in components(run))
    keys = [key for name in used for key in cited(papers.get(name, ""))]
    keys += ["holm1979"] if comparison.size else []
    keys += [key for column in SCORES for key in cited(METRICS[column.key].source)]
    missing = [f"{say(name)} ({say(papers.get(name, 'its source is not known'))})" for name in used
               if not cited(papers.get(name, ""))]  # fmt: skip
    files = {
        "results.tex": results(comparison, say),
        "setup.tex": setup(comparison, papers, say, whole=not anonymous),
        "references.bib": bibliography(keys, missing),
    }
    for name, text in files.items():
        write_text(folder / name, text)
    return folder


def placeless(text: str) -> str:
    """A text whose paths, repositories and addresses are down to their last part: `/home/ann/my_model` is `my_model`."""
    return ADDRESSES.sub("[address]", PLACES.sub("", text))


def nameless(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The records with methods, orders and tasks whose names hold no place; two that are then alike get a number."""
    methods = _renamed(str(r["method"]) for r in records)
    orders = _renamed(str(r["order"]) for r in records)
    tasks = _renamed(str(t) for r in records for key in ("tasks", "anchors") for t in r.get(key) or ())
    return [_anonymous(record, methods, orders, tasks) for record in records]


def _renamed(names: Iterable[str]) -> dict[str, str]:
    new: dict[str, str] = {}
    for name in dict.fromkeys(names):
        short = placeless(name) or "unnamed"
        free = (f"{short} {i}" if i > 1 else short for i in range(1, len(new) + 2))
        new[name] = next(candidate for candidate in free if candidate not in new.values())
    return new


def _anonymous(
    record: Record, methods: Mapping[str, str], orders: Mapping[str, str], tasks: Mapping[str, str]
) -> dict[str, Any]:
    probes = {
        name: [{**row, **{k: tasks.get(row[k], row[k]) for k in ("scored", "trained") if k in row}} for row in rows]
        for name, rows in (record.get("probes") or {}).items()
    }
    named = {key: [tasks[str(t)] for t in record[key]] for key in ("tasks", "anchors") if record.get(key)}
    own = {"method": methods[str(record["method"])], "order": orders[str(record["order"])]}
    return {**record, **own, **named, "probes": probes}
