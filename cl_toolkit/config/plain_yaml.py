"""YAML and dotted overrides in, YAML out. The only door to omegaconf.

A document is plain data: mappings, lists, texts, numbers, true, false and null. `1e-4` is a number, a key that stands twice is
refused, tags are refused, and `${` is text like any other: nothing is interpolated, no environment is read.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cl_toolkit.errors import UserError, quoted, short

BYTES, NODES, DEPTH = 10_000_000, 1_000_000, 50
"""The largest file, the most values once every alias is written out, the deepest nesting."""
TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
SHIELD = "$\N{WORD JOINER}{"
"""What `${` is while omegaconf has the text, so that it is no interpolation."""


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of one document; raises UserError with file and line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return None
        _weigh(node, where, {})
        if not isinstance(node, yaml.MappingNode):
            return as_plain(yaml.safe_load(text), where)
        return as_plain(unshield(OmegaConf.to_container(OmegaConf.create(text.replace("${", SHIELD)))), where)
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply; at most {DEPTH} levels") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}: not valid YAML: {short(' '.join(str(error).split()), 200)}") from error


def unshield(value: Any) -> Any:
    """Plain data with `${` again where omegaconf was not to see it."""
    if isinstance(value, dict):
        return {unshield(k): unshield(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unshield(v) for v in value]
    return value.replace(SHIELD, "${") if isinstance(value, str) else value


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    """Keys are the text that is written: `1` is, `on` (true) and `01` (a number) are not, without quotes."""
    seen = set()
    for key, _ in node.value:
        scalar = isinstance(key, yaml.ScalarNode)
        if not scalar or not (key.tag in TEXTS or str(yaml.safe_load(key.value)) == key.value):
            shown = f" ({key.value}); put it into quotes" if scalar else ""
            raise UserError(f"{where}: not valid YAML: line {key.start_mark.line + 1}: a key is no text{shown}")
        if key.value in seen and key.value != "<<":
            raise UserError(f"{where}: not valid YAML: line {key.start_mark.line + 1}: found duplicate key {key.value}")
        seen.add(key.value)


def _weigh(node: yaml.Node, where: str, known: dict[int, int], depth: int = 0) -> int:
    """How many values a node stands for; refuses aliases that multiply without end, and what is nested too deeply."""
    if depth > DEPTH:
        raise UserError(f"{where}: is nested too deeply; at most {DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
        inner = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_weigh(part, where, known, depth + 1) for part in inner)
        if known[id(node)] > NODES:
            raise UserError(f"{where}: holds more than {NODES} values")
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """The plain data of a file; raises UserError."""
    try:
        if path.stat().st_size > BYTES:
            raise UserError(f"{path}: is larger than {BYTES // 1_000_000} MB; is it a config?")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: not UTF-8 at byte {error.start}") from error
    return parse_yaml(text, str(path))


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Plain data as a YAML document that `read_yaml` reads back."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(_shielded(plain))).replace(SHIELD, "${")


def to_compact_yaml(plain: Mapping[str, Any]) -> str:
    """The same in fewer lines: the innermost mappings and lists stand on one each."""
    return yaml.safe_dump(plain, default_flow_style=None, sort_keys=False, allow_unicode=True, width=10**6)


def _shielded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_shielded(k): _shielded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shielded(v) for v in value]
    return value.replace("${", SHIELD) if isinstance(value, str) else value


def as_plain(value: Any, where: str, path: str = "", depth: int = 0) -> Any:
    """Data of a program in the form that a file would have: keys are texts, tuples are lists. Other objects (a strategy, a
    class) stay. Raises UserError for a key that is no text and for what is nested too deeply."""
    if depth > DEPTH:
        raise UserError(f"{where}: {short(path)}: is nested too deeply; at most {DEPTH} levels")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, (str, int)) or isinstance(key, bool):
                raise UserError(f"{where}: {short(path) or 'a key'}: expected keys that are text, got {quoted(key)}")
        return {str(k): as_plain(v, where, f"{path}.{k}".strip("."), depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(v, where, path, depth + 1) for v in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """`train.learning_rate=1e-4` -> nested dict; the value is read as YAML."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for item in overrides:
        path, separator, text = item.partition("=")
        if not separator or not all(path.split(".")):
            raise UserError(f"{short(item)}: expected key=value, such as train.learning_rate=1e-4")
        if len(path.split(".")) > DEPTH:
            raise UserError(f"command line: {short(path)}: is nested too deeply; at most {DEPTH} levels")
        parse_yaml(text, f"command line: {short(path)}")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist([item.replace("${", SHIELD) for item in overrides]))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"command line: {short(' '.join(str(error).split()), 200)}") from error
    return as_plain(unshield(found), "command line")


def unfilled(plain: Any, path: str = "") -> Iterator[str]:
    """Paths of the keys that a shipped config leaves to its user (`???`)."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from unfilled(value, f"{path}.{key}".strip("."))
    elif plain == "???":
        yield path
