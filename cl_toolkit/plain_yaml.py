"""YAML in and out. The only door to yaml.

A document is plain data: mappings, lists, texts, numbers, true, false and null. Keys are texts as they are written (`1:` is
"1", `on:` is "on"). `1e-4` is a number, a key that stands twice is refused, tags are refused, and `${` is text like any
other: nothing is interpolated, no environment is read.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from cl_toolkit.errors import UserError, quoted, short

BYTES, NODES, DEPTH = 10_000_000, 1_000_000, 50
"""The largest file, the most values once every alias is written out, the deepest nesting."""
FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d[\d_]*(?:[eE][-+]?\d+)?|\.(?:inf|Inf|INF))$"
    r"|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:null":
                raise yaml.constructor.ConstructorError(None, None, "a key is no text", key.start_mark)
            if key.value in seen and key.tag != MERGE:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


MERGE = "tag:yaml.org,2002:merge"
TIMES = "tag:yaml.org,2002:timestamp"
for _cls in (_Loader, _Dumper):
    _cls.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag not in (TIMES, "tag:yaml.org,2002:float")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _cls.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))


def parse_yaml(text: str, where: str) -> Any:
    """The plain data of one document; raises UserError with file and line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, where, {})
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: is nested too deeply; at most {DEPTH} levels") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {short(' '.join(str(error).split()), 200)}") from error
    except ValueError as error:
        raise UserError(f"{where}: not valid YAML: {short(str(error), 200)}") from error
    finally:
        loader.dispose()


def _weigh(node: yaml.Node, where: str, known: dict[int, int], depth: int = 0) -> int:
    """How many values a node stands for; refuses aliases that multiply without end, and what is nested too deeply."""
    if depth > DEPTH:
        raise UserError(f"{where}: is nested too deeply; at most {DEPTH} levels")
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
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
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**16)


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
    return value


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """`train.learning_rate=1e-4` -> nested dict; the value is read as YAML."""
    found: dict[str, Any] = {}
    for item in overrides:
        path, separator, text = item.partition("=")
        keys = path.split(".")
        if not separator or not all(keys):
            raise UserError(f"{short(item)}: expected key=value, such as train.learning_rate=1e-4")
        if len(keys) > DEPTH:
            raise UserError(f"command line: {short(path)}: is nested too deeply; at most {DEPTH} levels")
        value = parse_yaml(text, f"command line: {short(path)}")
        inner = found
        for key in keys[:-1]:
            if not isinstance(inner.get(key), dict):
                inner[key] = {}
            inner = inner[key]
        inner[keys[-1]] = value
    return found


def unfilled(plain: Any, path: str = "") -> Iterator[str]:
    """Paths of the keys that a shipped config leaves to its user (`???`)."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield from unfilled(value, f"{path}.{key}".strip("."))
    elif plain == "???":
        yield path
