"""The card of an exported model: what the Hub reads of it, how it is loaded, what it can do, and where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PIPELINES = {"AutoModelForCausalLM": "text-generation", "AutoModelForSequenceClassification": "text-classification"}
"""Transformers' class -> the Hub's word for what its models do."""


def card(record: Mapping[str, Any], done: int, written: Any, folder: str, base: str, config: str) -> str:
    """README.md of a folder. done: stages that the model has learned. written: what stands there (`models.product.Written`).
    base: the start model's id on the Hub; "" where it has none. config: that of the run, as YAML."""
    plain, stages = record["config"], record["stages"][:done]
    tags = ["continual-learning", "cl-toolkit", plain["objective"]["name"], *plain["strategies"]]
    head: dict[str, Any] = {"library_name": written.library, "tags": tags}
    if base:
        head |= {"base_model": base, "base_model_relation": "adapter" if written.base else "finetune"}
    if written.auto in PIPELINES:
        head["pipeline_tag"] = PIPELINES[written.auto]
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())  # JSON is YAML
    learned = ", then ".join(f"`{stage['task']}`" for stage in stages) or "nothing: it is the start model"
    methods = ", ".join(f"`{name}`" for name in plain["strategies"]) or "no strategy"
    parts = [
        f"---\n{front}\n---\n\n# {record['name']}: {record['method']}"
        + (f", after {stages[-1]['task']}" if stages else ""),
        f"`{plain['model']['name']}` has learned {learned}. Objective: `{plain['objective']['name']}`. Method: "
        f"`{record['method']}` ({methods}), order `{record['order']}`, seed `{record['seed']}`.",
        written.notes(),
        f"```python\n{written.code(folder)}\n```",
        f"## Scores\n\n{_matrix(record, done)}",
        _metrics(record) if done == len(record["stages"]) else "",
        f"## Lineage\n\n{_lineage(record)}",
        f"## Config\n\n```yaml\n{config}```\n",
    ]
    return "\n\n".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(cell: Any) -> str:
    return f"{cell + 0.0:.4g}" if isinstance(cell, (int, float)) else "–"


def _matrix(record: Mapping[str, Any], done: int) -> str:
    """A row before training and after each stage, a column per task and anchor."""
    stages = record["stages"][:done]
    names = [("before training", 0), *((f"after {stage['task']}", stage["row"]) for stage in stages)]
    rows = [[name, *map(_shown, record["matrix"][row] + record["anchor_matrix"][row])] for name, row in names]
    scorers = ", ".join(
        f"`{task}` by `{scorer}`" for task, scorer in zip(record["tasks"], record["scorers"], strict=True)
    )
    anchors = [f"{name} (anchor)" for name in record["anchors"]]
    split = record["config"]["evaluate"]["split"]
    return _table(["", *record["tasks"], *anchors], rows) + f"\n\nOn the {split} split: {scorers}."


def _metrics(record: Mapping[str, Any]) -> str:
    known = {name: value for name, value in record["metrics"].items() if value is not None}
    return _table(list(known), [[_shown(value) for value in known.values()]]) if known else ""


def _lineage(record: Mapping[str, Any]) -> str:
    """What the weights were made of."""
    made, known = record["provenance"], record["identity"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    lines = [
        f"versions: {versions}" + (f" (commit `{made['commit']}`)" if made.get("commit") else ""),
        f"start model: `{made['model_hash']}`, "
        + ", ".join(f"{key} {value}" for key, value in sorted(known["model"].items())),
        "data: " + ", ".join(f"{name} `{digest}`" for name, digest in known["data"].items()),
        *(f"code: {name} from {source['from']} `{source['hash']}`" for name, source in known["code"].items()),
        f"trained from {made['started']} to {made['finished'] or 'a later time'} on {made['hardware']['device']}, "
        f"{made['hardware']['processes']} process(es), scored in {record['scoring_dtype']}",
    ]
    return "\n".join(f"- {line}" for line in lines)
