"""Plain data -> frozen dataclass, with errors that name the key, say what was expected and the nearest right name."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from cl_toolkit.errors import UserError, did_you_mean


def typed(cls: type, data: Mapping[str, Any], path: str, where: str) -> Any:
    """An instance of the dataclass `cls` from a mapping.

    path: of the section, `train`; where: the file, for the message. Raises UserError for an unknown key, a missing one,
    a wrong type, or what the class itself refuses (a ValueError of its `__post_init__`).
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise UserError(f"{where}: {path}.{key}: unknown key{did_you_mean(str(key), fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = convert(hints[name], data[name], f"{path}.{name}", where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}: {path}.{name}: missing; expected {describe(hints[name])}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {path}.{error}") from error


def convert(hint: Any, value: Any, path: str, where: str) -> Any:
    """One value to one type; raises UserError."""
    try:
        return _convert(hint, value, path, where)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {path}: expected {describe(hint)}, got {value!r}") from None


def _convert(hint: Any, value: Any, path: str, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [arg for arg in args if arg is not type(None)]
        if len(options) == 1:
            return convert(options[0], value, path, where)
        for option in options:
            try:
                return _convert(option, value, path, where)
            except (TypeError, ValueError, UserError):
                continue
        raise TypeError
    if origin is Literal:
        # YAML reads a bare `off` as False
        value = "off" if value is False and "off" in args else value
        if value not in args:
            near = did_you_mean(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
            raise UserError(f"{where}: {path}: expected {describe(hint)}, got {value!r}{near.split('; known')[0]}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if args[-1] is Ellipsis:
            return tuple(convert(args[0], v, f"{path}[{i}]", where) for i, v in enumerate(value))
        if len(args) != len(value):
            raise TypeError
        return tuple(convert(a, v, f"{path}[{i}]", where) for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return dict(value)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise TypeError
        return typed(hint, value, path, where)
    return _scalar(hint, value)


def _scalar(hint: type, value: Any) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool):
        raise TypeError
    if hint is float:
        if not isinstance(value, (int, float, str)):  # YAML reads 1e-4 as a string
            raise TypeError
        return float(value)
    if hint is int:
        if not isinstance(value, int):
            raise TypeError
        return value
    if not isinstance(value, hint):
        raise TypeError
    return value


def describe(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) for a in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        return f"a list of {describe(args[0])}"
    if hint is dict or origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))
