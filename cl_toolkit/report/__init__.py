"""Run records -> summary.csv, plots and one self-contained HTML page. Loads no model and no library that could."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_toolkit.errors import UserError
from cl_toolkit.report.records import Record


def build(records: Sequence[Record], folder: Path) -> Path:
    """Write `summary.csv`, `plots/*.png`, `plots/*.svg` and `report.html` into the folder; returns the page's path.

    Runs that failed or have not finished are listed with their status and counted nowhere. The same records give the
    same bytes, in whatever order they come. Figures of an earlier build that no longer apply are deleted. Raises
    UserError without records, OSError if the folder cannot be written.
    """
    # drawing and tables take a second to import, which a command that only asks for help must not pay
    from cl_toolkit.report.figures import draw
    from cl_toolkit.report.page import render
    from cl_toolkit.report.tables import summary

    if not records:
        raise UserError(f"{folder}: no run records to report on")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary(records).to_csv(folder / "summary.csv", index=False)
    page = folder / "report.html"
    page.write_text(render(records, draw(records, folder / "plots")), encoding="utf-8")
    return page
