"""Several studies as one: what they must share, which of their runs are of one method, which are the same run twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.report.likeness import BLOCKING, OWN, UNSCORED, identity, init_seed, mixed, settings, within
from cl_toolkit.report.reading import Record, objective
from cl_toolkit.runs.record import run_folder

Part = list[tuple[int, int]]
"""Runs as (study, place in it), both counted from 0."""


@dataclass(frozen=True)
class Joined:
    """Runs of several studies with the names that their methods have here; where each comes from, as (study, place in it), both
    from 0; and in sentences what was kept apart or left out."""

    records: list[dict[str, Any]]
    origins: list[tuple[int, int]]
    notes: tuple[str, ...] = ()


def labels(folders: Sequence[Path]) -> list[str]:
    """What to call each folder: its name, with as many of those above it as it takes to tell them apart. Raises UserError where
    one is named twice."""
    places = [folder.resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"{place}: is named twice; its runs count once")
    names: list[str] = []
    for depth in itertools.count(1):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def join(studies: Mapping[str, Sequence[Record]]) -> Joined:
    """Studies, by what they are called, as one.

    Methods of one name are one method where their runs differ in seed and order only (`likeness.mixed`); others are kept apart
    as `replay (first)` and `replay (second)`. The same run twice counts once: the finished one, else that of the study named
    first. Raises UserError where two studies do not share stream, model or evaluation, and so cannot be compared.
    """
    names, runs = list(studies), list(studies.values())
    for (one, its), (other, theirs) in itertools.combinations(studies.items(), 2):
        if found := _unshared(its, theirs):
            key, a, b = found
            raise UserError(f"{other}: cannot be compared with {one}: {key} is {a} in {one} and {b} in {other}")
    notes: list[str] = []
    placed: dict[tuple[int, int], str] = {}
    for method in dict.fromkeys(str(r["method"]) for records in runs for r in records):
        kinds = _kinds(method, runs)
        for kind in kinds:
            of = ", ".join(dict.fromkeys(names[study] for study, _ in kind))
            placed |= dict.fromkeys(kind, f"{method} ({of})" if len(kinds) > 1 else method)
        for kind in kinds[1:]:
            why = mixed({method: [runs[s][i] for s, i in (kinds[0] + kind) if runs[s][i].get("status") == "finished"]})
            notes.append(f"{placed[kinds[0][0]]} and {placed[kind[0]]} are kept apart: {why[method]}")
    kept, twice = _once(placed, runs)
    notes += [
        f"{what} is in {names[a]} and in {names[b]} with {same} scores; it counts once" for what, a, b, same in twice
    ]
    return Joined([{**runs[s][i], "method": placed[s, i]} for s, i in kept], kept, tuple(notes))


def _unshared(one: Sequence[Record], other: Sequence[Record]) -> tuple[str, str, str] | None:
    """The first key, with a value of each study, in which no run of the one is as one of the other. A setting that is
    absent counts as None; what only one study's identity says is no difference."""
    a, b = _ground(one), _ground(other)
    for key in [*a, *(key for key in b if key not in a)] if a and b else ():
        absent = {"None"} if within(key, BLOCKING) else {*a.get(key, ()), *b.get(key, ())}
        values = a.get(key, absent), b.get(key, absent)
        if not values[0] & values[1]:
            mine, theirs = (" or ".join(sorted(v)) for v in values)
            return key, mine, theirs
    return None


def _ground(records: Sequence[Record]) -> dict[str, set[str]]:
    """What the scores of finished runs rest on: key -> the values that occur."""
    finished = [r for r in records if r.get("status") == "finished"]
    config = [settings(r, (*OWN, *UNSCORED, "model.adapter")) for r in finished]
    found: dict[str, set[str]] = {
        key: {str(flat.get(key)) for flat in config}
        for key in sorted({k for flat in config for k in flat if within(k, BLOCKING)})
    }
    for record in finished:
        for key, value in _measured(record):
            found.setdefault(key, set()).add(str(value))
    return found


def _measured(record: Record) -> Iterator[tuple[str, Any]]:
    """Key and value of what a run's identity says of data, start model and scoring."""
    yield from ((f"data of task {task}", value) for task, value in identity(record, "data").items())
    # an objective gives the start model its own heads, and a built-in one is made anew for each seed
    where = f"(seed {init_seed(record)}, objective {objective(record)})"
    yield from ((f"start model {key} {where}", value) for key, value in identity(record, "model").items())
    for key, value in identity(record, "code").items():
        if key.startswith(("stream", "scorer of ")) and key.endswith(".hash"):
            yield f"code of {key.removesuffix('.hash')}", value
    for key, what in (("scorers", "scorer"), ("examples_scored", "examples scored")):
        told = zip(record.get("tasks") or (), record.get(key) or (), strict=False)
        yield from ((f"{what} of task {task}", value) for task, value in told)


def _kinds(method: str, runs: Sequence[Sequence[Record]]) -> list[Part]:
    """The runs of a name, apart by what else they differ in. A run that has not finished goes with those of its study."""
    kinds: list[Part] = []
    for study, records in enumerate(runs):
        own = [(study, i) for i, r in enumerate(records) if str(r["method"]) == method]
        done = [runs[s][i] for s, i in own if runs[s][i].get("status") == "finished"]
        for kind in kinds:
            known = [runs[s][i] for s, i in kind if runs[s][i].get("status") == "finished"]
            if own and not mixed({method: [*known, *done]} if known and done else {}):
                kind.extend(own)
                break
        else:
            kinds += [own] if own else []
    return kinds


def _once(
    placed: Mapping[tuple[int, int], str], runs: Sequence[Sequence[Record]]
) -> tuple[Part, list[tuple[str, int, int, str]]]:
    """(the runs that count, in the order of the studies; of each that was there twice its name, both studies, and whether its
    scores are `the same` or `other`)."""
    chosen: dict[tuple[str, str], tuple[int, int]] = {}
    twice = []
    for study, i in sorted(placed):
        record, key = runs[study][i], (placed[study, i], run_folder(runs[study][i]))
        if key not in chosen:
            chosen[key] = study, i
            continue
        before = runs[chosen[key][0]][chosen[key][1]]
        if before.get("status") == record.get("status") == "finished":
            same = "the same" if before["matrix"] == record["matrix"] else "other"
            twice.append((f"{key[0]} {key[1]}", chosen[key][0], study, same))
        elif record.get("status") == "finished":
            chosen[key] = study, i
    return sorted(chosen.values()), twice
