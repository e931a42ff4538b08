"""What a search leaves behind: a config with the chosen settings, which says how they were chosen."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_toolkit.config.layers import find_config, shipped_configs
from cl_toolkit.config.plain_yaml import parse_overrides, to_compact_yaml, to_yaml
from cl_toolkit.config.schema import StudyConfig
from cl_toolkit.data.streams import chosen_tasks
from cl_toolkit.report.costs import SECONDS
from cl_toolkit.runs.checkpoint import write_text
from cl_toolkit.study.choice import Outcome
from cl_toolkit.study.tune import Tuning

DIGITS = 6
"""Decimals of a metric, and of seconds, that are kept."""


def write_tuned(
    tuning: Tuning, folder: Path, study: StudyConfig, made: Sequence[Outcome], chosen: Mapping[str, Outcome]
) -> Path:
    """Write a config that extends the searched one, with the overrides of the search, the chosen settings in its methods, and
    the whole search in `chosen`: `<folder>/tuned.yaml`. study: of all trials."""
    path = find_config(tuning.source)
    below = tuning.source if tuning.source in shipped_configs() else str(path.resolve())
    methods = {**tuning.methods, **{method: outcome.trial.difference for method, outcome in chosen.items()}}
    kept = [o for o in tuning.overrides if o.split("=")[0] != "evaluate.split"]  # the search's alone
    given = parse_overrides(kept) if kept else {}
    content = {**given, "extends": below, "name": f"{tuning.name}-tuned", "methods": methods}
    how = provenance(tuning, study, made, chosen)
    lines = [f"# {m}: {o.metrics['acc']:.3f} on validation data with {o.trial.values}" for m, o in chosen.items()]
    lines += [f"# {line}" for line in (tuning.rule, *how["remarks"])]
    write_text(folder / "tuned.yaml", "\n".join([*lines, to_yaml(content) + to_compact_yaml({"chosen": how})]))
    return folder / "tuned.yaml"


def provenance(
    tuning: Tuning, study: StudyConfig, made: Sequence[Outcome], chosen: Mapping[str, Outcome]
) -> dict[str, Any]:
    """How settings were chosen, as the section `chosen` has it (`config.schema.Chosen`)."""
    first = study.runs[0]
    units = {o.unit for o in made if not o.failed}
    return {
        "rule": tuning.search.rule,
        "stream_of": tuning.on,
        "stream": first.stream.name,
        "tasks": sorted(chosen_tasks(first, "the config")),
        "orders": list(dict.fromkeys(run.order for run in study.runs)),
        "split": first.evaluate.split,
        "seed": tuning.search.seed,
        "unit": units.pop() if len(units) == 1 else SECONDS,
        "remarks": tuning.remarks(made, chosen),
        "methods": {m: searched(m, made, chosen.get(m)) for m in tuning.searched},
    }


def searched(method: str, made: Sequence[Outcome], chosen: Outcome | None) -> dict[str, Any]:
    """A method's part of it."""
    trials = [
        {
            "values": copy.deepcopy(o.trial.values),  # YAML writes an object that stands twice as an alias
            "metrics": {key: round(value, DIGITS) for key, value in o.metrics.items() if value is not None},
            "seconds": round(o.seconds, DIGITS),
        }
        for o in made
        if o.trial.method == method
    ]
    return {"values": None if chosen is None else chosen.trial.values, "trials": trials}
