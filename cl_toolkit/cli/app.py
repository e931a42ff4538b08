"""The command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cl_toolkit.cli import ends, product, tuning, watching
from cl_toolkit.cli.console import print_answers, print_results, printable
from cl_toolkit.engine import launch
from cl_toolkit.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compare continual-learning strategies for language models and read who forgets how much, at what cost.",
    epilog="--debug, anywhere, shows the traceback of an error.",
)

INTERRUPTED = 130
"""Typer's exit code for Ctrl-C."""

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A shipped config by name (see `list`), or a path.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings over the file: train.max_steps=50")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the results. Default: results/<name>")]
Results = Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder that a comparison or a run wrote.")]


def split_names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def split_seeds(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(part) for part in split_names(text) or ()]
    except ValueError:
        raise UserError(f"--seeds {text}: expected whole numbers with commas between them, such as 0,1,2") from None


@app.command()
def compare(
    config: Config,
    overrides: Overrides = None,
    methods: Annotated[str | None, typer.Option(help="Of the file's only these, with commas between.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="name=file.py:Class adds a method with your strategy.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's: 0,1,2")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    out: Out = None,
):
    """Run methods x orders x seeds; what is already there is kept. Writes records, tables, figures and report.html."""
    from cl_toolkit.study.cells import load_study

    if methods is not None and not split_names(methods):
        raise UserError("--methods: is empty; expected names with commas between them")
    study = load_study(config, overrides or [], methods=split_names(methods), add=add or [], seeds=split_seeds(seeds))
    raise typer.Exit(run_comparison(study, out or Path("results") / study.name, jobs))


def run_comparison(study, folder: Path, jobs: int) -> int:
    """Run a comparison with live progress; print findings and the table; the exit code."""
    from cl_toolkit.cli.progress import Progress
    from cl_toolkit.study import compare as studies

    with Progress([studies.run_name(run) for run in study.runs]) as progress:
        found, failures = studies.compare(study, folder, jobs=jobs, update=progress, say=progress.say)
    print_results(found, folder)
    for failure in failures:
        typer.echo(f"failed: {failure.run}: {printable(failure.error)}", err=True)
        typer.echo(f"        traceback: {folder / 'runs' / failure.run / 'traceback.txt'}", err=True)
    return 1 if failures else 0


app.command()(tuning.tune)


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(help="One of the config's methods; default: the config itself.")] = None,
    order: Annotated[str | None, typer.Option(help="One of the config's orders, by name or number from 1.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Write where the time of a few steps goes: profile-trace.json, profile.txt."),
    ] = False,
):
    """One run. In a folder with an unfinished run of the same config it goes on after the last finished task. With --method
    and --order it is the run that `compare` would make of them, folder and record alike: one job of an array."""
    from cl_toolkit.api import default_folder
    from cl_toolkit.cli.progress import Progress
    from cl_toolkit.measure.metrics import HEADLINE
    from cl_toolkit.study.cells import load_run
    from cl_toolkit.study.compare import run_name

    settings = load_run(config, overrides or [], method, order)
    folder = out or default_folder(settings)
    first = launch.rank() == 0
    from cl_toolkit.runs.events import Note
    from cl_toolkit.runs.run import execute

    with Progress([run_name(settings)] if first else []) as progress:
        name = run_name(settings)

        def listen(event):
            progress(name, event.fraction, event.name)
            if isinstance(event, Note):
                progress.say(event.text)

        record = execute(settings, folder, listen if first else None, profile=profile)
    if first:
        typer.echo(f"record: {folder / 'record.json'}")
        for key in HEADLINE:
            value, reason = record["metrics"][key], record["undefined"].get(key)
            typer.echo(f"{key:20} {f'undefined: {reason}' if value is None else f'{value:.3f}'}")


@app.command()
def demo(out: Out = None):
    """Two tasks, sequential against replay, and the answers before and after. Under a minute."""
    from cl_toolkit.study.cells import load_study

    study = load_study("demo")
    folder = out or Path("results") / "demo"
    code = run_comparison(study, folder, 1)
    if code == 0:
        first = study.runs[0].plain["stream"]["tasks"][0]
        typer.echo(
            f"\nWhat the model answers to `{first}`, before, after learning it, and after the task that came next:\n"
        )
        print_answers(folder, first, None, 3)
    raise typer.Exit(code)


@app.command()
def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders that comparisons or runs wrote; several as one.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where to. Default: RESULTS; of several results/<A>+<B>")] = None,
    sweep: Annotated[
        Path | None, typer.Option(help="Folder of `tune`: its trials as a front of what is learned and what is kept.")
    ] = None,
    paper: Annotated[
        Path | None, typer.Option(help="Folder for a paper: vector figures, results.tex, setup.tex, references.bib.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="With --paper: no folders, owners, addresses, versions or commit in it.")
    ] = False,
):
    """Rebuild tables, figures and report.html from the records alone, of several folders as one; nothing is trained."""
    from cl_toolkit.api import load
    from cl_toolkit.report import build

    if anonymous and paper is None:
        raise UserError("--anonymous: is about what --paper DIR writes; report.html says where its runs come from")
    study = load(*results)
    folder = out or (results[0] if len(results) == 1 else Path("results") / "+".join(r.resolve().name for r in results))
    for source in results if len(results) > 1 else ():
        if folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"--out {folder}: lies in {source}, which is read and stays as it is; name another folder")
    build(study.records, folder, study.notes, load(sweep).records if sweep else ())
    print_results(study, folder)
    if paper is not None:
        typer.echo(f"\npaper: {study.paper(paper, anonymous=anonymous)}")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="With all settings and defaults.")] = False):
    """What a config can name: strategies, objectives, streams, scorers, probes, trackers, models, engines, shipped configs."""
    from cl_toolkit.cli.show import catalogue

    found = catalogue()
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False, default=str))
        return
    for kind, rows in found.items():
        typer.secho(kind, bold=True)
        for row in rows:
            paper = f"  [{row['paper']}]" if row.get("paper") not in (None, "ours", "standard") else ""
            needs = "  stores examples" if row.get("needs_examples") else ""
            costs = f"  {row['costs']}" if row.get("costs") else ""
            typer.echo(f"  {row['name']:18} {row['summary']}{paper}{needs}{costs}")
        typer.echo()


@app.command()
def plan(
    config: Config,
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes of the job. Default: of this launch.")] = None,
    memory: Annotated[float | None, typer.Option(help="GiB of the GPU to plan for. Default: what is here.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Load each model and time three real steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="In bytes and seconds.")] = False,
):
    """The resolved config, the runs, about what they will cost, and the memory of a process. Refuses what cannot work; loads no
    model but with --measure."""
    from cl_toolkit.cli import planned
    from cl_toolkit.study.cells import load_study

    found = planned.look(load_study(config, overrides or []), processes or launch.world(), memory, measure)
    for line in [json.dumps(found, ensure_ascii=False, default=str)] if as_json else planned.told(found):
        typer.echo(line)


@app.command()
def show(
    config: Config,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option(min=1, help="Examples per task.")] = 2,
):
    """Training examples as the model sees them; what is trained stands between ⟦ and ⟧."""
    from cl_toolkit.data.streams import build_stream
    from cl_toolkit.runs.fit import check_fit, codec_of
    from cl_toolkit.study.cells import load_run

    settings = load_run(config, overrides or [])
    stream = build_stream(settings)
    codec = codec_of(settings, stream)
    for note in check_fit(codec, stream, settings):
        typer.secho(f"note: {note}", fg="yellow")
    for task in stream.tasks:
        typer.secho(
            f"{task.name}: {len(task.train)} train, {len(task.valid)} valid, {len(task.test)} test; {task.scorer}",
            bold=True,
        )
        for example in task.train[:n]:
            typer.echo("  " + printable(codec.shown(example)).replace("\n", "\n  "))
        typer.echo()


@app.command()
def check(
    reference: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name of `list`, file.py:Name, module:Name, or a model's folder or id."),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its settings: path=my_data")
    ] = None,
    law: Annotated[list[int] | None, typer.Option(help="Only this law; may be given several times.")] = None,
):
    """Check a strategy, objective, stream, model, scorer, probe, tracker or engine against the laws of its kind."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cl_toolkit.check import check as check_all
    from cl_toolkit.config.plain_yaml import parse_overrides

    results = check_all(reference, law, parse_overrides(settings or []))
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("law", "", "passed", "what was seen"):
        table.add_column(column, overflow="fold")
    for result in results:
        mark = {True: Text("yes", "green"), False: Text("NO", "bold red"), None: Text("–", "dim")}[result.passed]
        seen = Text(result.seen)
        seen.append(f"\nWhy it matters: {result.law.why}.", "dim")
        table.add_row(str(result.law.number), result.law.title, mark, seen)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    broken = [str(r.law.number) for r in results if r.passed is False]
    typer.echo(f"\n{reference}: " + (f"breaks law {', '.join(broken)}" if broken else "keeps every law that applies"))
    raise typer.Exit(1 if broken else 0)


@app.command()
def new(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="strategy, objective, stream, scorer, probe or tracker.")],
    name: Annotated[str, typer.Argument(help="In small letters: my_idea")],
    folder: Annotated[Path, typer.Option(help="Where to.")] = Path(),
):
    """Write a strategy, or another kind of thing, that already keeps the laws, and its test."""
    from cl_toolkit.cli import scaffold

    reference, test = scaffold.new(kind, name, folder)
    typer.echo(f"{reference.rpartition(':')[0]}\n{test}\n\ncl-toolkit check {reference}")


@app.command()
def answers(
    results: Results,
    task: Annotated[str | None, typer.Option(help="Only this task.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method.")] = None,
    n: Annotated[int, typer.Option(min=1, help="Questions per task and run.")] = 5,
):
    """What the model said: before training, after learning the task, and at the end."""
    print_answers(results, task, method, n)


app.command()(product.export)
app.command()(product.gate)
app.command()(product.relearn)
app.command()(watching.watch)
TOGETHER = ("run",)
"""Commands that all processes of a job work on. Of the others process 0 does the work."""


def main() -> None:
    """Run the command line: errors for people in one line with exit code 2; `--debug` shows the traceback. Of several processes
    the first one speaks."""
    launch.join()
    ends.heed_signals()
    arguments = sys.argv[1:]
    # launchers of distributed jobs put --local_rank=N in front; the same number is in the environment
    wanted = [a for a in arguments if a != "--debug" and not a.startswith("--local_rank")]
    try:
        if launch.rank() > 0:
            if not {*wanted[:1]} & {*TOGETHER}:
                sys.exit(0)
            launch.be_quiet()
        obey(wanted, "--debug" in arguments)
    except ends.Stopped as error:
        ends.say_stopped()
        ends.leave(128 + error.args[0])


def obey(arguments: list[str], debug: bool) -> None:
    """Do what is asked, and end."""
    try:
        code = app(args=arguments, prog_name="cl-toolkit", standalone_mode=False)
        if code != INTERRUPTED and launch.world() > 1:  # one process leaves when it ends; who called it may go on
            launch.leave(together=True)
    except (UserError, typer.exceptions.TyperException) as error:
        if debug:
            raise
        if not arguments:  # the help is asked for
            asked: Any = error
            asked.show()
            sys.exit(2)
        ends.fail(str(error) if isinstance(error, UserError) else error.format_message(), 2)
    except Exception as error:
        if debug:
            raise
        ends.fail_by(error)
    if code == INTERRUPTED:
        ends.say_stopped()
        ends.leave(code)
    sys.exit(code if isinstance(code, int) else 0)
