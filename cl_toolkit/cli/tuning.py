"""The command that chooses settings."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from cl_toolkit.cli.console import printable

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A shipped config by name (see `list`), or a path.")]


def tune(
    config: Config,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file: train.max_steps=50")
    ] = None,
    on: Annotated[
        str | None, typer.Option(help="A config: settings are chosen on its stream, and not on the comparison's own.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder of the trials. Default: results/<name>-tune")] = None,
):
    """Try the settings of the config's `search` on validation data, equally many per method; writes the chosen ones. The same
    command again goes on where it was stopped."""
    from cl_toolkit.cli.progress import Progress
    from cl_toolkit.report.tables import as_csv
    from cl_toolkit.runs.checkpoint import replace_file
    from cl_toolkit.study import choice
    from cl_toolkit.study import compare as studies
    from cl_toolkit.study.search import Trial
    from cl_toolkit.study.tune import Tuning
    from cl_toolkit.study.tuned import write_tuned

    tuning = Tuning.of(config, overrides or [], on)
    folder = out or Path("results") / tuning.title
    trials: list[Trial] = []
    made: list[choice.Outcome] = []
    failures: list[studies.Failure] = []
    for number in itertools.count():
        more = tuning.further(number, made)
        if not more:
            break
        trials += more
        study = tuning.study(trials)
        with Progress([studies.run_name(run) for run in study.runs]) as progress:
            found, failed = studies.compare(
                study, folder, jobs=jobs, update=progress, say=progress.say, skip=[f.run for f in failures], page=False
            )
        failures += failed
        made = choice.outcomes(trials, found.records)
    studies.report(folder, found)
    chosen = choice.best(made, tuning.search)
    rows = choice.table(made, chosen)
    replace_file(folder / "trials.csv", lambda beside: beside.write_text(as_csv(rows), encoding="utf-8"))
    typer.echo(rows.to_string(index=False, na_rep="–"))
    if chosen:
        typer.echo(f"\n{choice.rankings(made, tuning.search).to_string(index=False, na_rep='–')}")
    tuned = write_tuned(tuning, folder, study, made, chosen)
    for failure in failures:
        typer.echo(f"failed: {failure.run}: {printable(failure.error)}", err=True)
    for remark in (tuning.rule, *tuning.remarks(made, chosen)):
        typer.echo(f"\n{remark}")
    typer.echo(f"\ncl-toolkit compare {tuned}")
    raise typer.Exit(1 if failures else 0)
