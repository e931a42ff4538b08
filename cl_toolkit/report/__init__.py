"""Run records -> summary.csv, plots and one self-contained HTML page. Loads no model and no library that could."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cl_toolkit.errors import UserError
from cl_toolkit.report.reading import Record
from cl_toolkit.runs.checkpoint import replace_file


def build(records: Sequence[Record], folder: Path, notes: Sequence[str] = (), sweep: Sequence[Record] = ()) -> Path:
    """Write `summary.csv` and what else there are tables of, `plots/*.png`, `plots/*.svg` and `report.html` into the folder;
    returns the page's path.

    Runs that failed or have not finished are listed with their status and counted nowhere. The same records give the
    same bytes, in whatever order they come. Figures of an earlier build that no longer apply are deleted. Metrics are
    computed from the matrices. Files are replaced, never written through a link. Raises UserError without records, for a
    damaged record or one of another schema, and where runs of one method differ in more than seed and order; OSError if
    the folder cannot be written. notes: what else the page has to say before one concludes. sweep: the records of a search over
    learning rates, for the front (`report.front`); where it is empty, the runs' own rates.
    """
    # drawing and tables take a second to import, which a command that only asks for help must not pay
    from cl_toolkit.report.comparison import Comparison
    from cl_toolkit.report.figures import draw
    from cl_toolkit.report.front import Front
    from cl_toolkit.report.page import render
    from cl_toolkit.report.tables import as_csv, per_run
    from cl_toolkit.report.tidy import autopsy, fitted, retention

    if not records:
        raise UserError(f"{folder}: no run records to report on")
    comparison = Comparison.of(records)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = comparison.records
    tables = {"summary": per_run(runs), "retention": retention(runs), "fits": fitted(runs), "autopsy": autopsy(runs)}
    text = render(comparison, draw(comparison, folder / "plots", front=Front.of(comparison, sweep)), notes)
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        if name == "summary" or len(table):
            replace_file(path, partial(_written, as_csv(table)))
        else:
            path.unlink(missing_ok=True)  # of an earlier build
    page = folder / "report.html"
    replace_file(page, lambda beside: beside.write_text(text, encoding="utf-8"))
    return page


def _written(text: str, path: Path) -> None:
    """The text with the line ends that it has, on every system."""
    path.write_text(text, encoding="utf-8", newline="")
