"""The commands about a model that is done: write it as an ordinary folder, decide whether it has kept enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cl_toolkit.cli.console import printable
from cl_toolkit.errors import UserError

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of one run: results/<name>/runs/<method>/<order>-s<seed>")
]


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Where to, a new folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="One model with the adapter in its weights.")] = False,
    after: Annotated[str | None, typer.Option(help="After this task; default: the last.")] = None,
):
    """Write a run's model, or its adapter, as an ordinary folder with a card, which transformers and PEFT load."""
    from cl_toolkit.api import export as write

    typer.echo(write(run, out, merge=merge, after=after) / "README.md")


def gate(
    run: Run,
    margin: Annotated[
        float, typer.Option(help="How much worse a score may be; of perplexity as a share of it.")
    ] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
):
    """Whether a run has kept its earlier tasks and anchors: exit code 0, or 1 where a score fell by more than the margin."""
    from cl_toolkit.report.gate import gate as judged
    from cl_toolkit.runs.record import find_run, read_record

    path = find_run(run) / "record.json"
    if not path.is_file():
        raise UserError(f"{path.parent}: the run is not finished; repeat the command that began it")
    rows = judged(read_record(path), margin)
    fell = [row for row in rows if not row.kept]
    if as_json:
        typer.echo(json.dumps({"kept": not fell, "margin": margin, "rows": [row.plain() for row in rows]}, indent=1))
        raise typer.Exit(1 if fell else 0)
    typer.echo(f"{'':24} {'before':>10} {'now':>10} {'lost':>10}")
    for row in rows:
        numbers = ["–" if value is None else f"{value:.4g}" for value in (row.before, row.now, row.lost)]
        name = printable(row.name) + (" (anchor)" if row.anchor else "")
        verdict = "kept" if row.kept else "not scored" if row.lost is None else "FELL"
        typer.echo(f"{name:24} {numbers[0]:>10} {numbers[1]:>10} {numbers[2]:>10}  {verdict}")
    for row in rows:
        if row.harmed:
            typer.echo(
                f"note: {printable(row.name)} got worse by its own training: {row.start:.4g}, then {row.before:.4g}"
            )
    typer.echo(
        f"\n{len(fell)} of {len(rows)} fell by more than {margin:g}" if fell else f"\nall kept within {margin:g}"
    )
    raise typer.Exit(1 if fell else 0)


def relearn(
    run: Run,
    examples: Annotated[str, typer.Option(help="Numbers of examples to train on again.")] = "1,4,16,64",
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps, the same for all.")] = 20,
    tasks: Annotated[str | None, typer.Option(help="Names of earlier tasks; default: all of them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
):
    """How few examples bring the score of an earlier task back; nothing of the run is changed."""
    from cl_toolkit.runs.relearn import relearn as tried

    sizes = examples.split(",")
    if not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise UserError(f"--examples {examples}: expected numbers from 1 on, such as 1,4,16")
    rows = tried(run, [int(size) for size in sizes], steps, tasks.split(",") if tasks else ())
    if as_json:
        typer.echo(json.dumps([row.plain() for row in rows], indent=1))
        return
    typer.echo(f"{'task':24} {'examples':>8} {'score':>8} {'learned':>8} {'regained':>9}")
    for row in rows:
        share = "–" if row.regained is None else f"{row.regained:.0%}"
        typer.echo(f"{printable(row.task):24} {row.examples:>8} {row.score:>8.4g} {row.learned:>8.4g} {share:>9}")
