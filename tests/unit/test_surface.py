"""What a user types stays as it is, or changes on purpose: config keys, commands and options, the names of `import cl_toolkit`.

They stand in `surface.txt`, one a line. `python tests/unit/test_surface.py > tests/unit/surface.txt` writes it anew.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

import cl_toolkit
from cl_toolkit.cli.app import app
from cl_toolkit.config.layers import config_dir
from cl_toolkit.config.schema import Seeds
from cl_toolkit.models.kind import HEADS, built_in, kind_class
from cl_toolkit.models.sections import Adapter
from cl_toolkit.registry import OBJECTIVES, PROBES, SCORERS, STRATEGIES, STREAMS, TRACKERS
from cl_toolkit.study.search import Search

SURFACE = Path(__file__).with_name("surface.txt")
FREE = ("methods",)
"""Keys of base.yaml below which a user's own names stand."""


def keys(section: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted keys of nested mappings."""
    for key, value in section.items():
        path = f"{before}{key}"
        if isinstance(value, dict) and value and path not in FREE:
            yield from keys(value, f"{path}.")
        else:
            yield path


def fields(cls: type, before: str) -> Iterator[str]:
    """The dotted keys of a dataclass, and of those within it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        path = f"{before}.{field.name}"
        yield path
        for part in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(part):
                yield from fields(part, path)


def commands() -> Iterator[str]:
    """Commands with their arguments and options."""
    for name, command in typer.main.get_command(app).commands.items():
        yield name
        for parameter in command.params:
            is_option = parameter.param_type_name == "option"
            yield from (f"{name} {word}" for word in (parameter.opts if is_option else [parameter.name.upper()]))


def surface() -> list[str]:
    """All of it, sorted."""
    found = [f"import {name}" for name in cl_toolkit.__all__]
    found += [f"command {line}" for line in commands()]
    found += [f"config {key}" for key in keys(yaml.safe_load((config_dir() / "base.yaml").read_text(encoding="utf-8")))]
    found += ["config model.adapter.per_task"]  # lists of the others, taken apart before they are typed
    found += [
        f"config {key}"
        for key in (*fields(Adapter, "model.adapter"), *fields(Seeds, "seed"), *fields(Search, "search"))
    ]
    kinds = built_in() | {f"({head})": kind_class({"name": "a folder", "head": head}, "test") for head in HEADS}
    for name, kind in kinds.items():
        found += [f"model {key}" for key in fields(kind, name)]
    for registry in (STRATEGIES, OBJECTIVES, STREAMS, SCORERS, PROBES, TRACKERS):
        for name in registry:
            if registry.source(name) is None:  # built in, neither another package's nor another test's
                settings = getattr(registry.get(name, "test"), "Config", None)
                found += [f"{registry.kind} {key}" for key in (name, *(fields(settings, name) if settings else ()))]
    return sorted(set(found))


def test_what_a_user_types_is_what_it_was():
    wanted, found = SURFACE.read_text(encoding="utf-8").splitlines(), surface()
    lines = [f"  gone: {line}" for line in wanted if line not in found]
    lines += [f"  new:  {line}" for line in found if line not in wanted]
    assert not lines, "\n".join(
        [
            "config keys, commands or names have changed:",
            *lines,
            "if this is meant, say so in CHANGELOG.md and write the list anew:",
            "  python tests/unit/test_surface.py > tests/unit/surface.txt",
        ]
    )


if __name__ == "__main__":
    print("\n".join(surface()))
