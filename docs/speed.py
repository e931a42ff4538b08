"""`python docs/speed.py`: docs/speed.md from the figures in docs/measured/speed-*.json (`make speed`, `make speed-peers`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
HEAD = """# Speed

Ratios of medians, measured in one run in turns with what they are compared with; smaller is faster. Repeat them with
`make speed` (against bare loops of PyTorch), `make speed-peers` (other libraries, in an environment of their own) and, on a
machine with a GPU, `make speed-gpu`. This page is written by `python docs/speed.py`.
"""
TITLES = {
    "cpu": "On a CPU, against bare loops",
    "peers": "On a CPU, against other libraries",
    "gpu": "On a GPU",
}
NONE = {
    "gpu": "Not measured with this version: no GPU was at hand. `make speed-gpu` prints the table in minutes.",
    "peers": "Not measured with this version.",
    "cpu": "Not measured with this version.",
}


def section(kind: str) -> str:
    """One table, or why there is none."""
    path = HERE / "measured" / f"speed-{kind}.json"
    if not path.exists():
        return f"## {TITLES[kind]}\n\n{NONE[kind]}\n"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    with_versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    rows = [
        f"| {row['what']} | {row['value']:.3g} {row['unit']} | {row['against']} | {bound(row)} | {row['n']} |"
        for row in found["figures"]
    ]
    table = "| what | measured | against | held to | n |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows)
    return f"## {TITLES[kind]}\n\n{found['date']}, {found['device']}; {with_versions}.\n\n{table}\n"


def bound(row: dict[str, Any]) -> str:
    """What a figure is held to; "missed" where it does not keep it."""
    if row["bound"] is None:
        return ""
    return f"{row['bound']:.3g}" + (" (missed)" if row["value"] > row["bound"] else "")


def page() -> str:
    """The whole page. Notes that explain figures stand in docs/measured/speed-notes.md."""
    notes = HERE / "measured" / "speed-notes.md"
    parts = [HEAD, *map(section, TITLES), *([notes.read_text(encoding="utf-8")] if notes.exists() else [])]
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "speed.md").write_text(page(), encoding="utf-8")
