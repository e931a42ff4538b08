"""Plain data -> frozen dataclass, with errors that name the key, say what was expected and the nearest right name.

The one place where types and ranges (`cl_toolkit.ranges`) are checked. No number anywhere may be NaN or infinite.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cl_toolkit.errors import UserError, did_you_mean, quoted, short, told
from cl_toolkit.ranges import Range

WHOLE = 2**63
"""Whole numbers beyond this are no setting's."""


ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "alpha": ("weight", "exponent"),
    "beta": ("mixture", "decay", "weight"),
    "cutoff_len": ("max_prompt_length", "block_size"),
    "epochs": ("num_train_epochs",),
    "gradient_accumulation_steps": ("global_batch_size",),
    "kl_coef": ("beta",),
    "lora_r": ("r",),
    "lora_rank": ("r",),
    "lora_target": ("target_modules",),
    "lr": ("learning_rate",),
    "max_new_tokens": ("max_completion_length",),
    "memory_strength": ("margin",),
    "rank": ("r", "effective_rank"),
}
"""Words of papers and of other libraries, and the keys that they may mean here: for the hint that an unknown key gets."""


class OutOfRange(ValueError):
    """A number of the right type that its field does not take; the text says what it takes."""


def typed(cls: type, data: Mapping[str, Any], path: str, where: str, beside: type | None = None) -> Any:
    """An instance of the dataclass `cls` from a mapping.

    path: of the section, `train`; where: the file, for the message. beside: the dataclass of the section's other keys, one of
    which a wrong key may have meant. Raises UserError for an unknown key, a missing one, a wrong type, a number out of its
    range, or what the class itself refuses (a ValueError of its `__post_init__`).
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as error:
        raise UserError(f"{where}: {path}: the types of {cls.__qualname__} cannot be read: {error}") from error
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    others = [f.name for f in dataclasses.fields(beside)] if beside else []
    for key in data:
        if key not in fields:
            names = [*fields, *others]
            meant = next((name for name in ELSEWHERE.get(str(key), ()) if name in names), str(key))
            near = did_you_mean(meant, names)
            raise UserError(f"{where}: {path}.{short(str(key))}: unknown key{near}")
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
    except Exception as error:
        raise UserError(f"{where}: {path}: {told(error, cls)}") from error


def check_instance(settings: Any, path: str, where: str) -> None:
    """The same checks for settings that were made by hand (a notebook's `Config(weight=-1)`)."""
    if dataclasses.is_dataclass(settings):
        values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.init}
        typed(type(settings), values, path, where)


def convert(hint: Any, value: Any, path: str, where: str) -> Any:
    """One value to one type; raises UserError."""
    try:
        return _convert(hint, value, path, where)
    except OutOfRange as error:
        raise UserError(f"{where}: {path}: expected {error}, got {quoted(value)}") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: {path}: expected {describe(hint)}, got {quoted(value)}") from None


def _convert(hint: Any, value: Any, path: str, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _ranged(_convert(args[0], value, path, where), args[1:])
    if hint is Any:
        return finite(value)
    if origin in (Union, types.UnionType):
        return _one_of(args, value, path, where)
    if origin is Literal:
        # YAML reads a bare `off` as False
        value = "off" if value is False and "off" in args else value
        if value not in args:
            near = did_you_mean(value, [a for a in args if isinstance(a, str)]) if isinstance(value, str) else ""
            raise UserError(
                f"{where}: {path}: expected {describe(hint)}, got {quoted(value)}{near.split('; known')[0]}"
            )
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
        inner = args[1] if args else Any
        return {key: convert(inner, v, f"{path}.{short(str(key))}", where) for key, v in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            check_instance(value, path, where)
            return value
        if not isinstance(value, Mapping):
            raise TypeError
        return typed(hint, value, path, where)
    return _scalar(hint, value)


def _one_of(options: tuple[Any, ...], value: Any, path: str, where: str) -> Any:
    """A value to one of several types, null among them or not."""
    optional = type(None) in options
    if value is None and optional:
        return None
    options = tuple(option for option in options if option is not type(None))
    if len(options) == 1:
        try:
            return _convert(options[0], value, path, where)
        except OutOfRange as error:
            raise OutOfRange(f"null or {error}" if optional else str(error)) from None
    for option in options:
        try:
            return _convert(option, value, path, where)
        except (TypeError, ValueError, UserError):
            continue
    raise TypeError


def _ranged(value: Any, metadata: tuple[Any, ...]) -> Any:
    for item in metadata:
        if isinstance(item, Range) and value not in item:
            raise OutOfRange(str(item))
    return value


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
        return finite(float(value))
    if hint is int:
        if not isinstance(value, int):
            raise TypeError
        if abs(value) >= WHOLE:
            raise OutOfRange("a whole number under 2^63")
        return value
    if not isinstance(value, hint):
        raise TypeError
    return value


def finite(value: Any) -> Any:
    """The value; raises OutOfRange where it is, or holds, NaN or infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise OutOfRange("a finite number")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        finite(inner)
    return value


def describe(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else describe(a) + _range_of(a) for a in args)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        many = "" if args[-1] is Ellipsis else f"{len(args)}: "
        return f"a list of {many}{', '.join(describe(a) for a in args if a is not Ellipsis)}"
    if hint is dict or origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _range_of(hint: Any) -> str:
    """What a type of numbers takes of them, in words that follow its own."""
    told = [str(item) for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range)]
    return "".join(t.removeprefix("a number") if t.startswith("a number") else f" of {t}" for t in told)
