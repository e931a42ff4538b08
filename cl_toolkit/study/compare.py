"""A comparison: methods x orders x seeds. Plan, run, resume, report."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cl_toolkit.config.plain_yaml import to_yaml
from cl_toolkit.config.schema import RunConfig, StudyConfig
from cl_toolkit.engine import launch
from cl_toolkit.errors import UserError, listed
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, STREAMS
from cl_toolkit.runs import checkpoint
from cl_toolkit.runs.events import Event
from cl_toolkit.runs.lock import locked
from cl_toolkit.runs.record import free_name, read_record, run_folder, stored_record
from cl_toolkit.strategy import Strategy
from cl_toolkit.study.launchers import runner
from cl_toolkit.study.members import MEMBERS, read_members
from cl_toolkit.study.one import execute_run, write_failure
from cl_toolkit.study.workers import Job, RunAll, Say, Update


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    run: str
    error: str


@dataclass(frozen=True)
class Found:
    """The records of a results folder that belong together, in sentences what else is there, and the folder of each run. Each
    record has what its study says of its method (`said_of`)."""

    records: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    places: tuple[Path, ...] = ()


def run_name(config: RunConfig) -> str:
    """`<method>/<order>-s<seed>`: the run's folder under `runs/`."""
    return f"{config.method}/{run_folder({'order': config.order, 'seed': config.plain['seed']})}"


def compare(
    study: StudyConfig,
    folder: Path,
    *,
    jobs: int = 1,
    update: Update = lambda run, fraction, what: None,
    say: Say = lambda text: None,
    skip: Collection[str] = (),
    page: bool = True,
) -> tuple[Found, list[Failure]]:
    """Run what is not yet there, then write the report on the runs of this study. Returns its records and the runs that
    failed.

    One failing run does not stop the others. With jobs = 1 everything happens in this process, so that a class defined in
    a notebook works; else each worker is a process of its own. Lets KeyboardInterrupt pass; finished runs stay. A
    stored run that is another one (other settings, code, data, model or toolkit) is moved aside, and `say` tells why.
    skip: names of runs that are not begun. page: whether the report is written.
    """
    from cl_toolkit.runs import forks

    launch.refuse_several("a comparison")
    run = runner(study.launcher, folder / "jobs", jobs)
    if run is not None:
        refuse_objects(study)
    shared = folder / "shared"
    known, keys = identities(study, say)
    with locked(folder):
        checkpoint.write_text(folder / "study.yaml", to_yaml(study.plain))
        members = {run_name(c): digest(c.plain, i) for c, i in zip(study.runs, known, strict=True)}
        known_by = {"methods": list(study.methods), "runs": members}
        known_by |= {"chosen": study.plain["chosen"], "budget": study.plain["budget"]["equal"]}
        checkpoint.write_checked(folder / MEMBERS, known_by)
        todo = []
        for config, parts in zip(study.runs, known, strict=True):
            place = folder / "runs" / run_name(config)
            if claim(config, parts, place, say):
                update(run_name(config), 1.0, "already there")
            elif run_name(config) not in skip:
                todo.append(Job(run_name(config), config, place, parts, shared))
        execute_all = one_by_one if run is None else partial(side_by_side, run=run, say=say)
        names = {run_name(c): key for c, key in zip(study.runs, keys, strict=True)}
        checkpoint.clear_litter(shared)
        forks.ask_for(shared, [names[job.name] for job in todo])
        failures = list(execute_all(givers_first(todo, names), jobs, update))
        forks.done_with(shared)
        found = find_records(folder)
        drop_checkpoints(study, folder, found)
        if page:
            report(folder, found)
    return found, failures


def drop_checkpoints(study: StudyConfig, folder: Path, found: Found) -> None:
    """A comparison goes on from records; checkpoints of finished runs are kept only where all are wanted."""
    finished = {(r["method"], r["order"], str(r["seed"])) for r in found.records if r["status"] == "finished"}
    for config in study.runs:
        done = (config.method, config.order, str(config.plain["seed"])) in finished
        if done and config.checkpoint.keep == "last":
            shutil.rmtree(folder / "runs" / run_name(config) / "checkpoints", ignore_errors=True)


def refuse_objects(study: StudyConfig) -> None:
    """What only this process knows cannot be run by another."""
    for config in study.runs:
        named = [(r, n) for part in (config, *config.then) for r, n in ((STREAMS, part.stream.name),
                 (OBJECTIVES, part.objective.name))]  # fmt: skip
        named += [(STRATEGIES, c.name) for c in config.strategies if not isinstance(c.settings, Strategy)]
        for registry, name in named:
            if registry.is_registered(name):
                raise UserError(
                    f"the {registry.kind} {name!r} was registered in this process alone, so it works with jobs = 1 only; "
                    "name it file.py:Class or module:Class for more"
                )
        if any(isinstance(c.settings, Strategy) for c in config.strategies):
            raise UserError(
                "a strategy that is an object or a class, not a name, works with jobs = 1 only; put it into a file for more"
            )


def givers_first(todo: list[Job], keys: Mapping[str, str | None]) -> list[Job]:
    """Of those that have a first training in common one before all others, each time."""
    giver: dict[str | None, str] = {}
    for job in todo:
        if keys[job.name] is not None:
            giver.setdefault(keys[job.name], job.name)
    return sorted(todo, key=lambda job: giver.get(keys[job.name]) != job.name)


def identities(study: StudyConfig, say: Say) -> tuple[list[dict[str, Any]], list[str | None]]:
    """What each run will be known by, and its first training. Reads every stream once and looks whether its examples fit, so
    that a fault in the data is found before anything runs; makes the start model before several runs want it at once."""
    from cl_toolkit.data.streams import build_stream
    from cl_toolkit.runs import forks
    from cl_toolkit.runs.fit import check_fit, codec_of
    from cl_toolkit.runs.identity import identity, shared_parts

    read, fitted, told = {}, set(), set()
    parts, keys = [], []
    for config in study.runs:
        key = json.dumps(
            [config.plain[k] for k in ("stream", "prompt", "model")] + [config.evaluate.split], default=str
        )
        if key not in read:
            stream = build_stream(config)
            read[key] = stream, shared_parts(config, stream)
        stream, shared = read[key]
        fit = key + json.dumps([config.plain[k] for k in ("objective", "strategies", "evaluate")], default=str)
        if fit not in fitted:
            fitted.add(fit)
            for note in check_fit(codec_of(config, stream), stream, config):
                if note not in told:
                    say(note)
                told.add(note)
        parts.append(identity(config, stream, shared))
        keys.append(forks.key_of(config, stream, parts[-1]))
    return parts, keys


def digest(config: Mapping[str, Any], parts: Mapping[str, Any] | None) -> str:
    """What a run is known by, as 16 hex digits: its settings without those of place, and its identity."""
    from cl_toolkit.runs.identity import settled

    text = json.dumps([settled(config), parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim(config: RunConfig, parts: Mapping[str, Any], place: Path, say: Say) -> bool:
    """Make a folder this run's own; whether its finished record is there already. Another run, or a checkpoint of one, is moved
    aside (`<name>.was-1`), so that nothing is lost; a damaged checkpoint too."""
    from cl_toolkit.runs.identity import changed

    if not place.exists():
        return False
    with locked(place):
        checkpoint.clear_litter(place)
        try:
            stored = stored_record(place, say)
            why = None if stored is None else changed(stored, config.plain, parts)
        except UserError as error:
            stored, why = None, str(error)
        if why is None:
            return stored is not None and stored["status"] == "finished"
        aside = free_name(place, "was")
        place.rename(aside)
    say(f"{run_name(config)}: {why}; the old run is kept as {aside.name}")
    return False


def one_by_one(todo: list[Job], jobs: int, update: Update) -> Iterator[Failure]:
    """Every run in this process."""
    for job in todo:

        def listen(event: Event, name: str = job.name) -> None:
            update(name, event.fraction, event.name)

        error = execute_run(job.config, job.place, listen, job.identity, job.shared)
        if error:
            update(job.name, 1.0, "failed")
            yield Failure(job.name, error)


def side_by_side(todo: list[Job], jobs: int, update: Update, run: RunAll, say: Say) -> Iterator[Failure]:
    """`jobs` runs at a time, each in a process that imports guests by itself."""
    for job, error, died in run(todo, jobs, update, say):
        update(job.name, 1.0, "failed" if error else "finished")
        if died and error:
            write_failure(job.config, job.place, error)
        if error:
            yield Failure(job.name, error)


def find_records(folder: Path) -> Found:
    """The records of a study's own runs (those that `study.json` knows), or the one record of a run; without `study.json`
    all that lie under `runs/`. Damaged ones are named and left out. Raises UserError where there is none."""
    lone = folder / "record.json"
    if lone.is_file() and not (folder / "runs").is_dir():
        return Found([read_record(lone)], places=(folder,))
    paths = {f"{p.parent.parent.name}/{p.parent.name}": p for p in sorted(folder.glob("runs/*/*/record.json"))}
    paths = {name: path for name, path in paths.items() if ".was-" not in name}
    members = read_members(folder)
    if members is not None:  # in the study's own order
        place = {name: i for i, name in enumerate(members["runs"])}
        paths = dict(sorted(paths.items(), key=lambda item: place.get(item[0], len(place))))
    records, notes, others, places = [], [], [], []
    for name, path in paths.items():
        try:
            record = read_record(path)
        except UserError as error:
            notes.append(f"{error}; it is left out")
            continue
        if members is not None and not belongs(record, members["runs"].get(name)):
            others.append(name)
        else:
            records.append(record | said_of(record["method"], members))
            places.append(path.parent)
    notes += sorted({note for record in records for note in remarks(record, folder)})
    if members is None and (folder / "study.yaml").exists():
        notes.append(f"{MEMBERS} is missing: every record of the folder is taken; `compare` writes it anew")
    if others:
        notes.append(f"in this folder, but not of this study: {listed(others)}")
    if members is not None:
        absent = [name for name in members["runs"] if name not in paths]
        notes += [f"of this study, but without a record: {listed(absent)}"] if absent else []
    if not records:
        raise UserError("; ".join([f"{folder}: no run records of this study here", *notes]))
    return Found(records, tuple(notes), tuple(places))


def said_of(method: str, members: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a study says of a method beside its records. chosen: how its settings were chosen, that is what is common to all
    methods, and in `own` the method's part, null where it was not searched. budget: what all methods get equally. Both are
    absent where the study has none."""
    members = members or {}
    found: dict[str, Any] = {}
    if chosen := members.get("chosen"):
        common = {key: value for key, value in chosen.items() if key != "methods"}
        found["chosen"] = {**common, "own": chosen["methods"].get(method)}
    if budget := members.get("budget"):
        found["budget"] = budget
    return found


def remarks(record: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """What has happened to a record's surroundings since it was written: code that was edited, answers that were damaged."""
    from cl_toolkit.sources import file_source

    for name, source in (record.get("identity") or {"code": {}})["code"].items():
        path = Path(source["from"].rpartition(":")[0] if ":" in source["from"] else source["from"])
        if path.is_file() and file_source(path).digest != source["hash"]:
            yield f"{source['from']} ({name}) has changed since these runs; `compare` runs them anew"
    place = folder / "runs" / record["method"] / run_folder(record)
    for name, checksum in record.get("answers", {}).items():
        path = place / "answers" / name
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != checksum:
            yield f"{path}: is missing, damaged or edited (checksum differs); the scores stand in the record"


def belongs(record: Mapping[str, Any], known: str | None) -> bool:
    """Whether a record is the run that the study knows; of a failed run its place says so."""
    return known is not None and (record["status"] == "failed" or digest(record["config"], record["identity"]) == known)


def report(folder: Path, found: Found) -> Path:
    """Tables, figures and the page of a comparison, from its records alone."""
    from cl_toolkit.report import build

    return build(found.records, folder, found.notes)
