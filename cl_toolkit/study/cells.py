"""From a file and a command line to the runs of a comparison."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cl_toolkit.config.build import build_run, read_run
from cl_toolkit.config.layers import base_layer, find_config, merge, normalise, read_layers
from cl_toolkit.config.plain_yaml import as_plain, parse_overrides
from cl_toolkit.config.schema import COMPARISON_KEYS, Budget, Chosen, RunConfig, StudyConfig
from cl_toolkit.config.typed import convert
from cl_toolkit.data.streams import chosen_tasks
from cl_toolkit.errors import UserError, did_you_mean, quoted, refuse_doubles, short
from cl_toolkit.ranges import SEED
from cl_toolkit.registry import canonical
from cl_toolkit.strategy import Strategy
from cl_toolkit.study.budget import steps_within
from cl_toolkit.study.launchers import read_launcher
from cl_toolkit.study.orders import find_order, order_name, orders_of
from cl_toolkit.study.search import read_search

Layer = tuple[str, dict[str, Any]]
HERE = "@"  # stands for the file to blame, until it is known


def load_layers(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[str, list[Layer]]:
    """(name, layers from the most general to the command line) of a shipped config, a file, or a dict."""
    base = base_layer()
    if isinstance(overrides, str) or not all(isinstance(item, str) for item in overrides):
        raise UserError(f"overrides: expected a list such as ['train.max_steps=3'], got {quoted(overrides)}")
    if isinstance(source, Mapping):
        name, layers = "study", [("the config", as_plain(source, "the config"))]
    else:
        path = find_config(str(source))
        name, layers = path.stem, read_layers(path)
    layers.append(("command line", parse_overrides(list(overrides)) if overrides else {}))
    layers = [(where, normalise(layer, where)) for where, layer in layers]
    for where, layer in layers:
        for key in layer:
            if key not in base:
                raise UserError(f"{where}: {short(key)}: unknown key{did_you_mean(key, base)}")
    return name, [("base.yaml", base), *layers]


def load_study(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    methods: Sequence[str] | Mapping[str, Any] | None = None,
    add: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    orders: Sequence[Any] | None = None,
    on: str | None = None,
) -> StudyConfig:
    """Every run of a comparison, checked. Raises UserError, before a model is loaded.

    methods: names to keep of the file's, or name -> what differs (added to the file's own; a strategy may be an object). add:
    `name=file.py:Class` adds a method with that strategy alone. seeds, orders: instead of the file's. on: a config whose
    stream takes the place of the file's.
    """
    name, layers = load_layers(source, overrides)
    layers = layers if on is None else on_stream(layers, on)
    where = layers[-2][0]
    plain = flatten(layers)
    plain["name"] = plain["name"] or name
    if "seed" in layers[-1][1]:
        raise UserError("command line: seed: is of one run; a comparison takes seeds=[0,1] or --seeds 0,1")
    chosen = chosen_methods(plain["methods"], methods, add)
    seeds = check_seeds(plain["seeds"] if seeds is None else seeds, holder(layers, "seeds"))
    check_folder_name(plain["name"], f"{where}: name")
    check_folders(chosen, f"{where}: methods")
    for label, difference in chosen.items():
        check_difference(difference, f"{where}: methods.{label}")
    check_strategy_overrides(layers[-1], plain, chosen, where)
    if plain["chosen"] is not None:
        convert(Chosen, plain["chosen"], "chosen", holder(layers, "chosen"))
    if plain["search"] is not None:  # `tune` reads it, but a mistake in it is one here too
        read_search(plain["search"], holder(layers, "search"))
    plain["orders"] = plain["orders"] if orders is None else list(orders)
    every = orders_of(plain["orders"], lambda: own_tasks(plain, layers), holder(layers, "orders"))
    runs, resolved = [], {}
    for label, difference in chosen.items():
        difference, instances = take_instances(normalise(difference or {}, f"{where}: methods.{label}"))
        resolved[label] = difference
        steps = steps_allowed(difference, plain, layers, label, instances)
        for order in every:
            for seed in seeds:
                config = with_steps(method_config(plain, difference, layers, order, seed), steps)
                runs.append(checked(config, layers, label, order_name(order), instances))
    shown = {**plain, "methods": resolved, "seeds": seeds}
    return StudyConfig(
        name=plain["name"],
        runs=tuple(runs),
        methods=tuple(chosen),
        seeds=tuple(seeds),
        launcher=read_launcher(plain["launcher"], holder(layers, "launcher")),
        plain=shown,
    )


def on_stream(layers: Sequence[Layer], other: str) -> list[Layer]:
    """The layers of a comparison with the stream of another config in place of their own, and with what belongs to a stream:
    prompt, orders, how many examples are scored, how long an answer is."""

    def part(layer: Mapping[str, Any], of_stream: bool) -> dict[str, Any]:
        kept = {
            k: v for k, v in layer.items() if (k in ("stream", "prompt", "orders")) == of_stream and k != "evaluate"
        }
        if isinstance(section := layer.get("evaluate"), Mapping):
            kept["evaluate"] = {k: v for k, v in section.items() if (k in ("limit", "max_new_tokens")) == of_stream}
        return kept

    base, *own, command_line = layers
    for key in ("stream", "prompt", "orders"):
        if key in command_line[1]:
            raise UserError(
                f"command line: {key}: is of one stream; write it into the config of the comparison or {other}"
            )
    theirs = load_layers(other)[1][1:-1]
    return [
        base,
        *((where, part(layer, False)) for where, layer in own),
        *((where, part(layer, True)) for where, layer in theirs),
        command_line,
    ]


def holder(layers: Sequence[Layer], key: str) -> str:
    """The file (or the command line) that sets a key; the config itself where none does."""
    return next((where for where, layer in reversed(layers[1:]) if key in layer), layers[-2][0])


def chosen_methods(
    own: Mapping[str, Any] | None, methods: Sequence[str] | Mapping[str, Any] | None, add: Sequence[str]
) -> dict[str, Any]:
    """The methods of a comparison: the file's own, of these the named ones, and the added ones."""
    chosen, added = dict(own or {"sequential": {}}), []
    for item in add:
        label, separator, reference = item.partition("=")
        if not separator or ":" not in reference:
            raise UserError(f"--add {short(item)}: expected name=file.py:Class or name=package.module:Class")
        if label in chosen:
            raise UserError(f"--add {short(item)}: there is already a method {quoted(label)}")
        chosen[label] = {"strategies": {reference: {}}}
        added.append(label)
    if methods is None:
        return chosen
    if isinstance(methods, Mapping):
        return chosen | as_plain(methods, "methods")
    if isinstance(methods, str) or not methods:
        raise UserError(f"methods: expected a list of names, got {quoted(methods)}{did_you_mean('', chosen)}")
    names = [find_name(name, chosen) for name in methods]
    refuse_doubles(names, "methods")
    return {name: chosen[name] for name in dict.fromkeys([*names, *added])}


def check_seeds(seeds: Any, where: str) -> list[int]:
    """The seeds of a comparison."""
    whole = isinstance(seeds, (list, tuple)) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not whole or not seeds:
        raise UserError(f"{where}: seeds: expected a list of whole numbers, got {quoted(seeds)}")
    for seed in seeds:
        if seed not in SEED:
            raise UserError(f"{where}: seeds: expected whole numbers in [0, 2^63), got {quoted(seed)}")
    refuse_doubles(seeds, f"{where}: seeds")
    return list(seeds)


def load_run(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    method: str | None = None,
    order: str | None = None,
) -> RunConfig:
    """The one run of a config: what it says without `methods`, or one of its methods, in one of its orders (by name, or by
    number from 1), as `compare` would run it."""
    name, layers = load_layers(source, overrides)
    plain = flatten(layers)
    plain["name"] = plain["name"] or name
    check_folder_name(plain["name"], f"{layers[-2][0]}: name")
    for key in ("seeds", "orders", "budget", "launcher", "search", "chosen"):
        if key in layers[-1][1]:
            raise UserError(
                f"command line: {key}: belongs to a comparison; one run takes seed=0 and stream.order=[...]"
            )
    difference: dict[str, Any] = {}
    if method is not None:
        method = find_name(method, plain["methods"])
        check_difference(plain["methods"][method], f"{layers[-2][0]}: methods.{method}")
        difference = normalise(plain["methods"][method] or {}, f"{layers[-2][0]}: methods.{method}")
    difference, instances = take_instances(difference)
    tasks = None
    if order is not None:
        orders = orders_of(plain["orders"], lambda: own_tasks(plain, layers), holder(layers, "orders"))
        tasks = find_order(order, orders)
    config = method_config(plain, difference, layers, tasks, plain["seed"], add_strategies=method is None)
    if method is not None:
        config = with_steps(config, steps_allowed(difference, plain, layers, method, instances))
    return checked(config, layers, method or "run", order_name(tasks), instances)


def own_tasks(plain: Mapping[str, Any], layers: Sequence[Layer]) -> list[str]:
    """The tasks of a comparison's stream, in its own order. Without its methods it need not work: none may run so."""
    with blamed(layers, "run"):
        config = read_run(method_config(plain, {}, layers, None, 0), HERE)
        return chosen_tasks(config, HERE)


def check_difference(difference: Any, where: str) -> None:
    """What a method states must be sections of a run."""
    if difference is not None and not isinstance(difference, Mapping):
        raise UserError(f"{where}: expected what differs from the rest, got {quoted(difference)}")
    for key in (*COMPARISON_KEYS, "seed"):
        if key in (difference or {}):
            raise UserError(f"{where}.{key}: belongs to the comparison, not to a method")
    stream = (difference or {}).get("stream")
    # its runs would be compared with those of another order
    if isinstance(stream, Mapping) and stream.get("order") is not None:
        raise UserError(f"{where}.stream.order: belongs to the comparison, not to a method; use orders")


def flatten(layers: Sequence[Layer]) -> dict[str, Any]:
    """Layers, one over the other. Strategies of the command line are left to each method."""
    base = layers[0][1]
    plain = copy.deepcopy(base)
    for where, layer in layers[1:]:
        if where == "command line":
            layer = {k: v for k, v in layer.items() if k != "strategies"}
        for section in (
            "stream",
            "model",
            "objective",
            "train",
            "engine",
            "generation",
            "evaluate",
            "checkpoint",
            "prompt",
        ):
            if section in layer and not isinstance(layer[section], dict):
                raise UserError(f"{where}: {section}: expected a mapping, got {quoted(layer[section])}")
        methods = layer.get("methods")
        if methods is not None and not isinstance(methods, dict):
            raise UserError(f"{where}: methods: expected name: differences, got {quoted(methods)}")
        plain = merge(plain, {k: v for k, v in layer.items() if k != "methods"}, base)
        if "chosen" in layer:
            plain["chosen"] = layer["chosen"]  # of one search, and not in parts of several
        if methods is not None:
            plain["methods"] = merge(plain["methods"], methods) if where == "command line" else methods
    return plain


def method_config(plain, difference, layers, order, seed, *, add_strategies: bool = False) -> dict[str, Any]:
    """One run's plain config: the study, what the method changes, the command line over both."""
    command_line = layers[-1][1]
    config = {k: v for k, v in plain.items() if k not in COMPARISON_KEYS}
    config = merge(config, difference, layers[0][1])
    rest = {k: v for k, v in command_line.items() if k not in (*COMPARISON_KEYS, "strategies", "seed")}
    config = merge(config, rest, layers[0][1])
    for name, settings in (command_line.get("strategies") or {}).items():
        if name in config["strategies"]:
            config["strategies"] = merge(config["strategies"], {name: settings})
        elif add_strategies:
            config["strategies"] = {**config["strategies"], name: settings}
    config = copy.deepcopy(config)
    if order is not None:
        config["stream"]["order"] = order
    config["seed"] = seed
    return config


def steps_allowed(
    difference: Mapping[str, Any],
    plain: Mapping[str, Any],
    layers: Sequence[Layer],
    label: str,
    instances: Mapping[str, Strategy],
) -> int | None:
    """The steps for each task that the comparison's `budget` leaves a method; None where there is no budget."""
    equal = convert(Budget, plain["budget"], "budget", holder(layers, "budget")).equal
    if equal is None:
        return None
    where = f"{layers[-2][0]}: methods.{label}"
    for key in ("max_steps", "num_train_epochs"):
        if key in (difference.get("train") or {}):
            raise UserError(f"{where}.train.{key}: how long a method trains is what budget.equal says")
    own = checked(method_config(plain, {}, layers, None, 0), layers, "run", "given", {})
    run = checked(method_config(plain, difference, layers, None, 0), layers, label, "given", instances)
    return steps_within(run, own, equal, where)


def with_steps(config: dict[str, Any], steps: int | None) -> dict[str, Any]:
    """A run's config with so many steps for each task; as it is with None."""
    return config if steps is None else {**config, "train": {**config["train"], "max_steps": steps}}


def check_strategy_overrides(
    command_line: Layer, plain: Mapping[str, Any], methods: Mapping[str, Any], where: str
) -> None:
    """`strategies.reg_lora.weight=1000` goes to every method that has the strategy; one must."""
    used = {canonical(n) for n in plain["strategies"]}
    for label, difference in methods.items():
        used |= set(normalise(difference or {}, f"{where}: methods.{label}").get("strategies") or {})
    for name in command_line[1].get("strategies") or {}:
        if name not in used:
            raise UserError(f"command line: strategies.{name}: no method uses it{did_you_mean(name, used)}")


def take_instances(difference: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Strategy]]:
    """Strategies that are objects or classes, apart; in the plain config stands what they are."""
    instances: dict[str, Strategy] = {}
    strategies = {}
    for name, value in (difference.get("strategies") or {}).items():
        if isinstance(value, type) and issubclass(value, Strategy):
            value = value()
        if isinstance(value, Strategy):
            instances[name] = value
            kind = f"{type(value).__module__}:{type(value).__qualname__}"
            value = as_plain({"class": kind, **dataclasses.asdict(value.config)}, f"strategies.{name}")
        strategies[name] = value
    return ({**difference, "strategies": strategies} if "strategies" in difference else dict(difference)), instances


RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
"""Names that Windows keeps for itself, whatever follows after a point."""


def check_folder_name(name: Any, where: str) -> None:
    """Studies and methods name folders, also on systems that are particular about them."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]*[\w+-]", name):
        raise UserError(f"{where}: {quoted(name)}: expected letters, digits and . _ + - (it names a folder)")
    if len(name) > 100:
        raise UserError(f"{where}: {short(name, 40)!r}: expected at most 100 characters (it names a folder)")
    if name.split(".")[0].casefold() in RESERVED:
        raise UserError(f"{where}: {name!r}: is a name that Windows keeps for itself (it names a folder)")


def check_folders(names: Iterable[str], where: str) -> None:
    """Each name a folder of its own, also where capitals are not told apart; `-` and `_` are equal everywhere here."""
    met: dict[str, str] = {}
    for name in names:
        check_folder_name(name, where)
        other = met.setdefault(canonical(name).casefold(), name)
        if other != name:
            raise UserError(f"{where}: {other!r} and {name!r} are one name: capitals and - or _ make no difference")


def find_name(name: str, methods: Mapping[str, Any]) -> str:
    """A method by name; `-` and `_` are equal."""
    for known in methods:
        if isinstance(name, str) and canonical(known) == canonical(name):
            return known
    raise UserError(f"unknown method {quoted(name)}{did_you_mean(str(name), methods)}")


def checked(config: dict[str, Any], layers: Sequence[Layer], method: str, order: str, instances) -> RunConfig:
    """The run; raises UserError for one that cannot work."""
    with blamed(layers, method):
        return build_run(config, HERE, method=method, order=order, instances=instances)


@contextmanager
def blamed(layers: Sequence[Layer], method: str) -> Iterator[None]:
    """A refusal names the file in which the offending key stands."""
    try:
        yield
    except UserError as error:
        text = str(error)
        if text.startswith(f"{HERE}: "):
            raise UserError(blame(text.removeprefix(f"{HERE}: "), layers, method)) from None
        raise


def blame(text: str, layers: Sequence[Layer], method: str) -> str:
    """Put the file in front: the last layer that has the key, the method's own part first."""
    path = text.split(":")[0].split("[")[0].split(".")
    for where, layer in reversed(layers[1:]):
        of_method = (layer.get("methods") or {}).get(method) if isinstance(layer.get("methods"), dict) else None
        if isinstance(of_method, Mapping) and holds(normalise(of_method, where), path):
            return f"{where}: methods.{method}.{text}"
        if holds(layer, path):
            return f"{where}: {text}"
    return f"{layers[-2][0]}: {text}"


def holds(layer: Any, path: Sequence[str]) -> bool:
    """Whether a nested mapping has that key."""
    for key in path:
        if not isinstance(layer, Mapping) or key not in layer:
            return False
        layer = layer[key]
    return True
