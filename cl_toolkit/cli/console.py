"""What a comparison found, as tables on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path


def printable(text: str) -> str:
    """A text of a record for a terminal: control characters are shown, not obeyed."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def print_results(study, folder: Path) -> None:
    """What was found, and what else lies in the folder."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cl_toolkit.report.comparison import Comparison
    from cl_toolkit.report.costs import reuse_sentence
    from cl_toolkit.report.findings import findings, parted
    from cl_toolkit.report.headline import headline
    from cl_toolkit.report.tables import ranking_rows

    console = Console(width=None if sys.stdout.isatty() else 140)
    comparison = Comparison.of(study.records)
    lines = ["", headline(comparison)]
    first, later = parted(findings(comparison))
    lines += [f"• {f.text} {f.warning}".rstrip() for f in first]
    if later:
        names = ", ".join(f.method for f in later)
        lines.append(f"• {len(later)} cannot be told from their control; the report has a sentence on each: {names}.")
    lines += [f"! {note}" for note in study.notes]
    lines += ["", reused] if (reused := reuse_sentence(comparison.runs)) else []
    for line in [*lines, f"\nreport: {folder / 'report.html'}\n"]:
        console.print(printable(line), markup=False, highlight=False)
    headers, rows = ranking_rows(comparison)
    table = Table(box=None, header_style="bold")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def print_answers(results: Path, task: str | None, method: str | None, n: int) -> None:
    """What the model said to the first n questions of each task, right answers in green."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cl_toolkit.cli.show import answer_rows

    rows = answer_rows(results, task, method, n)
    table = Table(box=None, header_style="bold")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        right = {"before", "learned", "end"}
        cells = [
            Text(printable(v), style=("green" if v.strip() == row["target"].strip() else "red") if k in right else "")
            for k, v in row.items()
        ]
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
