"""YAML files as layers: the shipped ones, what a file extends, one over the other.

Defaults of the core stand once, in `configs/base.yaml`. Precedence: command line, then file, then what it `extends`, then
base.yaml; nothing else sets values.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cl_toolkit.config.plain_yaml import read_yaml
from cl_toolkit.errors import UserError, did_you_mean, quoted, short
from cl_toolkit.registry import canonical


def config_dir() -> Path:
    """The folder of shipped configs, wherever the package is installed."""
    import cl_toolkit.configs

    return Path(cl_toolkit.configs.__file__).parent


def shipped_configs() -> dict[str, Path]:
    """Name -> path of the configs that come with the package."""
    return {path.stem: path for path in sorted(config_dir().glob("*.yaml")) if path.stem != "base"}


def find_config(name: str) -> Path:
    """A path, or the name of a shipped config."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():  # a folder may have the name of a shipped config
        if path.is_file():
            return path
        raise UserError(f"{name}: no such config file")
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UserError(f"{name}: neither a file nor a shipped config{did_you_mean(name, shipped)}")


def read_layers(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, dict[str, Any]]]:
    """(file, content) from the most general to the file itself, following `extends`."""
    if path.resolve() in seen:
        raise UserError(f"{path}: extends itself")
    content = read_yaml(path)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of sections, got {type(content).__name__}")
    base = content.pop("extends", None)
    if base is None:
        return [(str(path), content)]
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: extends: expected the name or the path of a config, got {quoted(base)}")
    beside = path.parent / base
    try:
        below = beside if beside.is_file() else find_config(base)
    except (UserError, OSError) as error:
        raise UserError(f"{path}: extends: {short(str(error), 200)}") from None
    return [*read_layers(below, (*seen, path.resolve())), (str(path), content)]


def base_layer() -> dict[str, Any]:
    """The defaults of the core, as an own copy."""
    return copy.deepcopy(_shipped_base())


@cache
def _shipped_base() -> dict[str, Any]:
    """base.yaml, read once: each run of a comparison asks for it, and reading takes 50 ms."""
    return read_layers(config_dir() / "base.yaml")[0][1]


def _strategy_name(name: Any) -> str | None:
    """`-` and `_` are equal in the name of a strategy, not in a path; None for what is no name."""
    if not isinstance(name, str):
        return None
    return name if ":" in name else canonical(name)


def normalise(layer: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Accept the shorthands: a list of strategies, a bare name for a section, `-` for `_` in names."""
    layer = dict(layer)
    strategies = layer.get("strategies", ())
    if strategies is None:  # the key with nothing behind it
        strategies = []
    if isinstance(strategies, str):
        strategies = [strategies]
    if isinstance(strategies, (list, tuple)):
        strategies = {_strategy_name(name): {} for name in strategies}
    if "strategies" in layer:
        if not isinstance(strategies, Mapping) or None in strategies:
            raise UserError(f"{where}: strategies: expected names or name: settings, got {quoted(layer['strategies'])}")
        named = {_strategy_name(name): {} if settings is None else settings for name, settings in strategies.items()}
        if len(named) < len(strategies):
            raise UserError(f"{where}: strategies: one is named twice: {short(', '.join(strategies))}")
        layer["strategies"] = named
    for section in ("stream", "model", "objective"):
        if isinstance(layer.get(section), str):
            layer[section] = {"name": layer[section]}
    return layer


OPEN = "???"
"""What stands in a config for a value that its user has to give."""


def merge(below: dict[str, Any], above: Mapping[str, Any], common: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`above` over `below`. A section that gets another `name` keeps only the keys that base.yaml has for it, since the
    rest were settings of what was named before; not so where the name was left open (`???`)."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            before, now = (canonical(str(name)) for name in (old.get("name"), value.get("name", old.get("name"))))
            named = common is not None and key in ("stream", "model", "objective") and before != OPEN
            if named and now != before:
                old = {k: v for k, v in old.items() if k in (common or {})[key]}
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def split_section(cls: type, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a section that belong to `cls`, and the others, which belong to the named component."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}
