"""The commands about a model that is done: write it as an ordinary folder, decide whether it has kept enough."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
