"""What two runs do not have in common: what forbids a comparison, what qualifies it, what makes a mean meaningless."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cl_toolkit.errors import UserError
from cl_toolkit.report.estimate import pairs
from cl_toolkit.report.methods import Methods
from cl_toolkit.report.reading import Record, lookup, objective, one_level
from cl_toolkit.runs.record import PLACE

OWN = ("strategies", "seed", "stream.order", "stream.view")
"""Settings in which methods of a comparison, or runs of one method, are meant to differ."""
BLOCKING = ("stream", "prompt", "evaluate", "model")
"""Sections that say on what a score was taken. Of `model` the adapter is a setting of training."""
UNSCORED = ("evaluate.forgetting_curve",)
"""Settings below these sections that change no score."""


def within(key: str, sections: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or lies below one."""
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def settings(record: Record, without: Sequence[str] = ()) -> dict[str, Any]:
    """The flat config without the settings of place, and without these keys and sections. An adapter's settings stand
    under `model.adapter`, as one value, where the key is absent in a run that has none."""
    flat = one_level(record.get("config") or {})
    return {k: v for k, v in flat.items() if not within(k, (*PLACE, *without))}


def unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, value there, value here) of what two flat mappings do not share; an absent key counts as None."""
    for key in sorted({*one, *other}):
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def identity(record: Record, part: str) -> dict[str, Any]:
    """A part of a record's identity as a flat mapping: `code`, `data`, `model`, `toolkit`, `precision`; empty without it."""
    found = lookup(record, f"identity.{part}")
    return one_level(found) if isinstance(found, Mapping) else {} if found is None else {"": found}


def recorded(one: Record, other: Record, part: str) -> Iterator[tuple[str, Any, Any]]:
    """What two runs do not share of a part of the identity, where both have it: names in `code` and `data` that only one
    has are no difference."""
    a, b = identity(one, part), identity(other, part)
    common = a.keys() & b.keys() if part in ("code", "data") else a.keys() | b.keys() if a and b else ()
    return unequal({k: a.get(k) for k in common}, {k: b.get(k) for k in common})


def barrier(runs: Sequence[Record], control: Sequence[Record]) -> str:
    """Why runs that share order and seed must not be compared: `other data for task sort`; "" if nothing forbids it."""
    for run, base in pairs(runs, control):
        if reason := _barrier(run, base):
            return reason
    return ""


def _barrier(run: Record, base: Record) -> str:
    words = {"data": "other data for task {}", "model": "another start model", "code": "other code of {}",
             "toolkit": "another toolkit ({}: {} against {})", "precision": "another precision ({}{} against {})"}  # fmt: skip
    if lookup(run, "config.train.bf16") != lookup(base, "config.train.bf16"):
        del words["precision"]  # it is what is compared
    if objective(run) != objective(base):
        del words["model"]  # an objective gives the start model its own heads
    for part, text in words.items():
        for key, value, control in recorded(run, base, part):
            return text.format(key, value, control)
    sizes = [dict(zip(r.get("tasks") or (), r.get("examples_scored") or (), strict=False)) for r in (run, base)]
    for task, value, control in unequal(*sizes):
        return f"{value or 'no'} examples scored of task {task}, against {control or 'none'}"
    # an order is paired by its name: of what is called `given` each config may have another
    left_out = (*(key for key in OWN if key != "stream.order"), *UNSCORED, "model.adapter")
    for key, value, control in unequal(settings(run, left_out), settings(base, left_out)):
        if within(key, BLOCKING):
            return f"{key} is {_shown(value)} against {_shown(control)}"
    return ""


def beside(runs: Sequence[Record], control: Sequence[Record]) -> str:
    """A sentence on the settings of training that differ beside the method itself; "" without any."""
    run, base = runs[0], control[0]
    found, left_out = [], (*OWN, *BLOCKING, "objective")
    if objective(run) != objective(base):
        found.append(f"the objective ({objective(run)} against {objective(base)})")
    else:
        a, b = ({k: v for k, v in settings(r).items() if within(k, ("objective",))} for r in (run, base))
        found += [f"{k} ({_shown(v)} against {_shown(c)})" for k, v, c in unequal(a, b) if k != "objective"]
    adapters = [lookup(r, "config.model.adapter") for r in (run, base)]
    if all(isinstance(adapter, Mapping) for adapter in adapters):
        a, b = (one_level({"model": {"adapter": adapter}}) for adapter in adapters)
        found += [f"{k} ({_shown(v)} against {_shown(c)})" for k, v, c in unequal(a, b)]
    elif any(isinstance(adapter, Mapping) for adapter in adapters):
        trained = ["an adapter" if isinstance(adapter, Mapping) else "all weights" for adapter in adapters]
        found.append(f"what is trained ({trained[0]} against {trained[1]})")
    pair = settings(run, left_out), settings(base, left_out)
    found += [f"{k} ({_shown(v)} against {_shown(c)})" for k, v, c in unequal(*pair)]
    return f"Not the method alone differs, also {', '.join(found)}." if found else ""


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def mixed(methods: Methods) -> dict[str, str]:
    """Method -> the first thing in which its finished runs differ beside seed and order, with both values and runs, as
    `train.learning_rate is 0.01 in given-s0 and 0.05 in given-s1`.

    Compared are the config (without `record.PLACE`) and the identity. The start model may depend on the seed: runs of one
    init seed must have the same, and over init seeds it is either one for all or each seed's own.
    """
    found = {method: _mixed(runs) for method, runs in methods.items()}
    return {method: reason for method, reason in found.items() if reason}


def _mixed(runs: Sequence[Record]) -> str:
    first, left_out = runs[0], ("seed", "stream.order")
    for run in runs[1:]:
        for key, one, other in unequal(settings(first, left_out), settings(run, left_out)):
            return _told(key, (one, first), (other, run))
        for part in ("data", "code", "toolkit", "precision"):
            a, b = identity(first, part), identity(run, part)
            for key, one, other in unequal(a, b) if a and b else ():
                return _told(f"{part} {key}".strip(), (one, first), (other, run))
    models: dict[str, tuple[str, Record]] = {}
    for run in runs:
        model = str(identity(run, "model"))
        known, other = models.setdefault(init_seed(run), (model, run))
        if known != model:
            return _told("start model", (known, other), (model, run))
    seen = [model for model, _ in models.values()]
    if 1 < len(set(seen)) < len(seen):
        (mine, here), (theirs, there) = next((x, y) for x in models.values() for y in models.values() if x[0] != y[0])
        return _told("start model", (mine, here), (theirs, there))
    return ""


def _told(what: str, *sides: tuple[Any, Record]) -> str:
    (one, a), (other, b) = sides
    places = [f"{r.get('order')}-s{r.get('seed')}" for r in (a, b)]
    return f"{what} is {_shown(one)} in {places[0]} and {_shown(other)} in {places[1]}"


def init_seed(record: Record) -> str:
    """The seed that a start model may depend on."""
    seed = record.get("seed")
    return str(seed.get("init") if isinstance(seed, Mapping) else seed)


def check_unmixed(methods: Methods) -> None:
    """Raises UserError where runs of one method are not of one kind (`mixed`): no mean may be taken of them."""
    for method, reason in mixed(methods).items():
        raise UserError(f"method {method}: {reason}; runs of one method may differ in seed and order only")
