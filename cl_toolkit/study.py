"""A comparison: methods x orders x seeds. Plan, run, resume, report."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_toolkit.checkpoint import write_json
from cl_toolkit.config import RunConfig, StudyConfig
from cl_toolkit.errors import UserError
from cl_toolkit.plain_yaml import read_yaml, to_yaml
from cl_toolkit.record import differs, head, stored_record
from cl_toolkit.strategy import Strategy
from cl_toolkit.watch import last_event

Update = Callable[[str, float, str], None]
"""(run, fraction done, what is happening)."""


@dataclass(frozen=True)
class Failure:
    """A run that did not finish."""

    run: str
    error: str


def run_name(config: RunConfig) -> str:
    """`<method>/<order>-s<seed>`: the run's folder under `runs/`."""
    seed = config.plain["seed"]
    seed = "-".join(map(str, seed.values())) if isinstance(seed, Mapping) else seed
    return f"{config.method}/{config.order}-s{seed}"


def compare(
    study: StudyConfig, folder: Path, *, jobs: int = 1, update: Update = lambda run, fraction, what: None
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Run what is not yet there, then write the report. Returns all records and the runs that failed.

    One failing run does not stop the others. With jobs = 1 everything happens in this process, so that a class defined in
    a notebook works; else each run has a process of its own pool. Raises KeyboardInterrupt through; finished runs stay.
    """
    read_streams(study)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(to_yaml(study.plain), encoding="utf-8")
    todo = []
    for config in study.runs:
        place = folder / "runs" / run_name(config)
        if is_finished(config, place):
            update(run_name(config), 1.0, "already there")
        else:
            todo.append((config, place))
    if todo:
        prepare(todo[0][0])
    execute_all = one_by_one if jobs == 1 else side_by_side
    failures = list(execute_all(todo, jobs, update))
    for config in study.runs:
        if config.checkpoint.keep == "last" and is_finished(config, folder / "runs" / run_name(config)):
            shutil.rmtree(folder / "runs" / run_name(config) / "checkpoints", ignore_errors=True)
    records = read_records(folder)
    report(folder, records)
    return records, failures


def read_streams(study: StudyConfig) -> None:
    """Read every stream once, so that a fault in the data is found before anything runs."""
    from cl_toolkit.streams import build_stream

    different = {repr([c.plain[key] for key in ("stream", "prompt")] + [c.evaluate.split]): c for c in study.runs}
    for config in different.values():
        build_stream(config)


def prepare(config: RunConfig) -> None:
    """Make the start model before several runs want it at once."""
    from cl_toolkit import models

    models.load(config.model.name, config.model_settings, config.seed.init)


def is_finished(config: RunConfig, place: Path) -> bool:
    """Whether the folder holds the finished record of this very config. One of another config, or a checkpoint of one, is
    moved aside (`<name>.was-1`), so that nothing is lost."""
    stored = stored_record(place)
    if stored is None:
        return False
    if differs(stored["config"], config.plain):
        number = next(i for i in range(1, 10_000) if not place.with_name(f"{place.name}.was-{i}").exists())
        place.rename(place.with_name(f"{place.name}.was-{number}"))
        return False
    return stored["status"] == "finished"


def one_by_one(todo: list[tuple[RunConfig, Path]], jobs: int, update: Update) -> Iterator[Failure]:
    """Every run in this process."""
    for config, place in todo:
        name = run_name(config)
        error = execute_run(config, place, lambda row, name=name: update(name, row.get("fraction", -1), row["event"]))
        if error:
            update(name, 1.0, "failed")
            yield Failure(name, error)


def side_by_side(todo: list[tuple[RunConfig, Path]], jobs: int, update: Update) -> Iterator[Failure]:
    """`jobs` runs at a time. When a process dies (out of memory, say) and takes the pool with it, the runs that were under
    way are tried again one at a time, so that the guilty one is found."""
    if any(isinstance(c.settings, Strategy) for config, _ in todo for c in config.strategies):
        raise UserError(
            "a strategy that is an object, not a name, works with jobs = 1 only; put it into a file for more"
        )
    suspects = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(execute_run, config, place): (config, place) for config, place in todo}
        try:
            for future, (config, place) in finished(futures, update):
                try:
                    error = future.result()
                except BrokenProcessPool:
                    suspects.append((config, place))
                    continue
                if error:
                    yield Failure(run_name(config), error)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for config, place in suspects:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            futures = {pool.submit(execute_run, config, place): (config, place)}
            for future, _ in finished(futures, update):
                try:
                    error = future.result()
                except BrokenProcessPool:
                    error = "its process died without a word (out of memory?)"
                    write_failure(config, place, error)
                if error:
                    yield Failure(run_name(config), error)


def finished(
    futures: dict[Future, tuple[RunConfig, Path]], update: Update
) -> Iterator[tuple[Future, tuple[RunConfig, Path]]]:
    """Futures as they finish; meanwhile progress is read from the runs' own events."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in waiting:
            config, place = futures[future]
            row = last_event(place / "events.jsonl") if future.running() else None
            if row:
                update(run_name(config), row.get("fraction", -1), row["event"])
        for future in done:
            config, _ = futures[future]
            failed = future.exception() is not None or bool(future.result())
            update(run_name(config), 1.0, "failed" if failed else "finished")
            yield future, futures[future]


def execute_run(config: RunConfig, place: Path, listener: Callable | None = None) -> str | None:
    """One run; the reason in one line if it failed, which its record then also says."""
    from cl_toolkit.runner import execute

    try:
        execute(config, place, listener)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        write_failure(
            config, place, reason.strip().splitlines()[0] if reason.strip() else reason, traceback.format_exc()
        )
        return reason
    return None


def write_failure(config: RunConfig, place: Path, error: str, trace: str = "") -> None:
    """The record of a run that failed; the traceback beside it."""
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "record.json", head(config, "failed", error))
    (place / "traceback.txt").write_text(trace, encoding="utf-8")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All records of a comparison, or the one record of a run; raises UserError where there is none."""
    paths = sorted(p for p in folder.glob("runs/*/*/record.json") if ".was-" not in p.parent.name)
    paths = paths or [p for p in [folder / "record.json"] if p.is_file()]
    records = []
    for path in paths:
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(f"{path}: not a record: {error}") from error
    order = study_order(folder)
    return sorted(records, key=lambda r: order.get(r["method"], len(order)))


def study_order(folder: Path) -> dict[str, int]:
    """Methods in the order of the study's config."""
    path = folder / "study.yaml"
    if not path.is_file():
        return {}
    return {name: i for i, name in enumerate((read_yaml(path) or {}).get("methods") or {})}


def report(folder: Path, records: list[dict[str, Any]]) -> Path:
    """Tables, figures and the page of a comparison, from its records alone."""
    from cl_toolkit.report import build

    return build(records, folder)
