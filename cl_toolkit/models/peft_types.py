"""Types of adapters, by PEFT's names, with the keys that PEFT's own settings have. Asked of PEFT, not listed here."""

from __future__ import annotations

import dataclasses
import logging
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from cl_toolkit.errors import UserError, did_you_mean, listed, quoted, short
from cl_toolkit.models.sections import Adapter, AnyAdapter, PeftAdapter
from cl_toolkit.registry import canonical

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

# PEFT imports bitsandbytes wherever it is installed, which says then that a faster kernel for CPUs is not
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

KEY = "model.adapter.type"
OWN = ("type", "between_tasks")
BY_INPUTS = ("corda",)
"""Beginnings of LoRA that go by what training examples give a layer as input."""
NEED_DATA = ("eva", "lora_ga")
"""Those for which PEFT wants more of the training examples than to go through the model once."""


@cache
def known() -> dict[str, tuple[type, dict[str, Any]]]:
    """Name -> (PEFT's settings, what the name itself sets): PEFT's types, and the variants of LoRA that it knows by a switch
    (`use_dora`) or by the way in which they begin (`pissa`)."""
    from peft import LoraConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    begun = _words(typing.get_type_hints(LoraConfig)["init_lora_weights"])
    switches = [f.name for f in dataclasses.fields(LoraConfig) if f.name.startswith("use_") and f.default is False]
    found: dict[str, tuple[type, dict[str, Any]]] = {
        **{
            word: (LoraConfig, {"init_lora_weights": word})
            for word in (*begun, *BY_INPUTS, *NEED_DATA)
            if word.isidentifier()
        },
        **{switch.removeprefix("use_"): (LoraConfig, {switch: True}) for switch in switches},
    }
    return found | {canonical(kind.value.lower()): (cls, {}) for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def _words(hint: Any) -> list[str]:
    """The texts that a type takes."""
    if get_origin(hint) is Literal:
        return [word for word in get_args(hint) if isinstance(word, str)]
    return [word for part in get_args(hint) for word in _words(part)]


def is_plain(section: Mapping[str, Any]) -> bool:
    """Whether a section asks for LoRA by keys of `Adapter` alone, which needs nothing of PEFT."""
    own = {f.name for f in dataclasses.fields(Adapter)}
    return section.get("type", "lora") == "lora" and set(section) <= own


def settings_class(name: Any, where: str) -> type:
    """A dataclass of the keys that adapters of a type have: PEFT's, with PEFT's defaults; of LoRA with those of `Adapter`."""
    if canonical(str(name)) not in known():
        raise UserError(f"{where}: {KEY}: unknown type {quoted(name)}{did_you_mean(canonical(str(name)), known())}")
    from peft import LoraConfig, PeftConfig

    cls, fixed = known()[canonical(str(name))]
    hints = typing.get_type_hints(cls)
    common = {f.name for f in dataclasses.fields(PeftConfig)}
    own = typing.get_type_hints(Adapter, include_extras=True)
    ours = {f.name: (own[f.name], f.default) for f in dataclasses.fields(Adapter)}
    made = {key: ours[key] for key in OWN}
    for field in dataclasses.fields(cls):
        if field.init and field.name not in common and field.name not in fixed:
            theirs = (_plain(hints[field.name]), None)
            made[field.name] = ours.get(field.name, theirs) if cls is LoraConfig else theirs
    parts = [(key, hint, dataclasses.field(default=default)) for key, (hint, default) in made.items()]
    return dataclasses.make_dataclass(cls.__name__, parts, frozen=True, kw_only=True)


def _plain(hint: Any) -> Any:
    """A type of PEFT's as one of plain data; null, which leaves a key to PEFT, is always taken."""
    return Union[_data(hint), None]  # noqa: UP007  # of any types


def _data(hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_data, args))]  # noqa: UP007  # of any types
    if origin in (list, set, tuple):
        return tuple[_data(args[0]), ...]  # type: ignore[misc]
    if origin is Literal or hint in (bool, int, float, str, type(None)):
        return str if any("[" in str(word) for word in args) else hint  # a word may hold a number: `pissa_niter_16`
    return dict if origin is dict or hint is dict or dataclasses.is_dataclass(hint) else Any


def adapter_of(section: Mapping[str, Any], settings: Any) -> PeftAdapter:
    """The adapter that a section asks for. settings: the section, typed by `settings_class`."""
    values = {key: getattr(settings, key) for key in section if key not in OWN}
    ours = [f.name for f in dataclasses.fields(Adapter) if f.name not in OWN and hasattr(settings, f.name)]
    values |= {key: getattr(settings, key) for key in ours if key not in values}
    given = {key: value for key, value in values.items() if value is not None}
    return PeftAdapter(
        type=canonical(settings.type),
        between_tasks=settings.between_tasks,
        target_modules=given.get("target_modules"),
        given=given,
    )


def peft_config(adapter: AnyAdapter, **options: Any) -> PeftConfig:
    """PEFT's settings of an adapter. options: further ones. Raises UserError for what PEFT itself refuses."""
    cls, fixed = known()[adapter.type]
    settings = {**fixed, **adapter.settings(), **options}
    hints = typing.get_type_hints(cls)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PEFT takes where nothing is said
            return cls(**{key: _theirs(hints[key], value) for key, value in settings.items()})
    except Exception as error:
        raise refused(error) from error


def _theirs(hint: Any, value: Any) -> Any:
    """Plain data as PEFT wants it: lists, and mappings as the settings that they are."""
    part = next((part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)), None)
    if isinstance(value, Mapping) and isinstance(part, type):
        return part(**value)
    return list(value) if isinstance(value, tuple) else value


def refused(error: Exception) -> UserError:
    """What PEFT raises, in one line."""
    what = " ".join(str(error).split())
    return UserError(f"model.adapter: PEFT refuses it: {type(error).__name__}: {short(what, 200)}")


def begins_by(adapter: AnyAdapter | None) -> Any:
    """How an adapter's weights begin, of PEFT's words; None where it does not say."""
    return {**known()[adapter.type][1], **adapter.settings()}.get("init_lora_weights") if adapter else None


def check_type(adapter: AnyAdapter) -> None:
    """Raise UserError for a type that cannot work here, whatever is done with it."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    if begins_by(adapter) in NEED_DATA:
        raise UserError(f"{KEY}: {adapter.type}: {NO_DATA}; {LEFT}")
    cls = known()[adapter.type][0]
    tuners = (PEFT_TYPE_TO_TUNER_MAPPING.get(kind) for kind, c in PEFT_TYPE_TO_CONFIG_MAPPING.items() if c is cls)
    if any(hasattr(tuner, "update_and_allocate") for tuner in tuners):  # before PEFT asks for settings in vain
        raise UserError(f"{KEY}: {adapter.type}: {NO_STEPS}; {LEFT}")
    for key in adapter.settings():
        word = key.removesuffix("_config")
        begins = key != word and known().get(word, (None, {}))[1].get("init_lora_weights") == word
        if begins and begins_by(adapter) != word:
            instead = "leave it out" if word in NEED_DATA else f"use type {word}, or leave it out"
            raise UserError(f"model.adapter.{key}: does nothing with type {adapter.type}; {instead}")
    config = peft_config(adapter)
    files = {"cache_file", "covariance_file"} & set(adapter.settings().get("corda_config") or {})
    if files:
        raise UserError(f"model.adapter.corda_config: {listed(sorted(files))}: {NO_FILES}; leave it out")
    if config.is_prompt_learning:
        raise UserError(f"{KEY}: {adapter.type}: {NO_TOKENS}; {LEFT}")


def default_targets(adapter: AnyAdapter, architecture: str) -> tuple[str, ...]:
    """The names of the layers that PEFT itself takes for a type on an architecture; () for a type that has none."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    config = peft_config(adapter)
    mapping: Any = getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "target_module_mapping", None)
    if not hasattr(config, "target_modules") or mapping is None:
        return ()
    if architecture not in mapping:
        raise UserError(
            f"model.adapter.target_modules: PEFT has no choice of its own for {adapter.type} on {architecture}; name the layers"
        )
    return tuple(mapping[architecture])


def by_condition(model: nn.Module) -> list[str]:
    """The names of torch's linear layers, that of the lowest condition number first."""
    try:
        from peft.helpers import KappaTuneSelector
    except ImportError:
        raise UserError(
            "model.adapter.target_modules: kappa: needs a PEFT with KappaTuneSelector; upgrade peft"
        ) from None
    return KappaTuneSelector(model, show_progress=False).get_best_targets()


def weigh_inputs(model: nn.Module, config: PeftConfig, run: Callable[[], None]) -> None:
    """Leave with each layer what CorDA begins with, by the inputs that it gets in `run`."""
    from peft.tuners.lora.corda import preprocess_corda

    preprocess_corda(model, config, run)


NO_DATA = "begins with more of training examples than the inputs that they give a layer, which is not seen to here"
NO_FILES = "a file of what other examples gave would stand for the task's own"
NO_TOKENS = "puts virtual tokens before each row, of which neither packed rows nor a prompt that is read once know"
NO_STEPS = "must be told of each optimizer step (update_and_allocate), which is not done here"
LEFT = "take lora, dora or pissa"
