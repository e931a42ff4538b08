"""Every number has a range, declared on its field; NaN and infinity are no setting's."""

import dataclasses
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from cl_toolkit import Strategy, UserError
from cl_toolkit.config import schema
from cl_toolkit.config.layers import base_layer
from cl_toolkit.config.typed import check_instance, typed
from cl_toolkit.data import sections as data
from cl_toolkit.engine import sections as engine
from cl_toolkit.measure import sections as measure
from cl_toolkit.models import arrays, tiny
from cl_toolkit.models import sections as models
from cl_toolkit.ranges import SEED, Range, above, at_least
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, STREAMS
from cl_toolkit.study.cells import load_study

OF_A_RUN = (schema.RunConfig, schema.StudyConfig, schema.Component)  # made by the code, not read from a file
WRITTEN = (schema.Tried, schema.ChosenMethod, schema.Chosen)  # by `tune`: what was measured may be any number


def sections():
    """Every class that settings are read into, by name."""
    found = {f"{r.kind} {n}": r.get(n, "test").Config for r in (STRATEGIES, OBJECTIVES, STREAMS) for n in r}
    for module in (schema, data, models, engine, measure, tiny, arrays):
        for name, cls in vars(module).items():
            own = isinstance(cls, type) and cls.__module__ == module.__name__
            if own and dataclasses.is_dataclass(cls) and cls not in (*OF_A_RUN, *WRITTEN):
                found[name] = cls
    return found


SECTIONS = sections()


def without_range(hint, ranged=False):
    """The kinds of number inside a type that have no range: in null or number, in lists, under Annotated."""
    if typing.get_origin(hint) is Annotated:
        base, *metadata = typing.get_args(hint)
        return without_range(base, any(isinstance(item, Range) for item in metadata))
    if hint in (int, float):
        return [] if ranged else [hint]
    return [kind for arg in typing.get_args(hint) for kind in without_range(arg)]


@pytest.mark.parametrize("name", SECTIONS)
def test_every_number_has_a_range(name):
    hints = typing.get_type_hints(SECTIONS[name], include_extras=True)
    assert {field: kinds for field, hint in hints.items() if (kinds := without_range(hint))} == {}


def test_there_are_sections_to_look_at():
    assert {"Train", "Evaluate", "Limit", "Seeds", "Adapter", "TinyLM", "Warmup", "MLP"} <= set(SECTIONS)
    assert {"strategy ewc", "objective rft", "stream skills"} <= set(SECTIONS)
    assert without_range(tuple[float, int] | None) == [float, int]


@pytest.mark.parametrize("name", SECTIONS)
def test_defaults_are_within_their_ranges(name):
    cls = SECTIONS[name]
    if all(f.default is not dataclasses.MISSING for f in dataclasses.fields(cls)):
        check_instance(cls(), name, "test")


def number_keys():
    """Every float of every class: (class name, key)."""
    for name, cls in SECTIONS.items():
        for key, hint in typing.get_type_hints(cls, include_extras=True).items():
            if "float" in str(hint) and "tuple" not in str(hint):
                yield name, key


@pytest.mark.parametrize(("name", "key"), list(number_keys()))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf", 10**400])
def test_nan_and_infinity_are_refused_everywhere(name, key, value):
    cls = SECTIONS[name]
    given = {f.name: getattr(cls, f.name, None) for f in dataclasses.fields(cls) if f.init} | {key: value}
    filled = {k: v for k, v in given.items() if k == key or v is not None}
    if section := {"Train": "train", "Generation": "generation", "EngineSection": "engine"}.get(name):
        filled = {**base_layer()[section], key: value}
    with pytest.raises(UserError, match=f"{key}: expected"):
        typed(cls, filled, "s", "test")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": {"acc": float("nan")}}, r"metrics\.acc: expected a finite number, got nan"),
        ({"metrics": {"acc": float("inf")}}, r"metrics\.acc: expected a finite number, got inf"),
        ({"seconds": -1.0}, "seconds: expected 0 or more"),
    ],
)
def test_of_what_a_search_has_written_numbers_are_finite(changes, told):
    with pytest.raises(UserError, match=told):
        typed(schema.Tried, {"values": {}, "metrics": {}, "seconds": 1.0, **changes}, "s", "test")


def test_a_range_in_words_and_in_numbers():
    for rule, text, inside, outside in (
        (at_least(0), "0 or more", [0, 5], [-1e-9]),
        (above(0), "a number above 0", [1e-9], [0]),
        (at_least(0).below(1), "a number in [0, 1)", [0, 0.99], [1, -0.1]),
        (above(0).up_to(2), "a number in (0, 2]", [2], [0, 2.1]),
        (at_least(1).or_(-1), "-1 or 1 or more", [-1, 1], [0, -2]),
        (SEED, "a number in [0, 2^63)", [0, 2**63 - 1], [2**63, -1]),
    ):
        assert str(rule) == text
        assert all(value in rule for value in inside)
        assert not any(value in rule for value in outside)


@dataclass(frozen=True, kw_only=True)
class Guest:
    weight: Annotated[float, at_least(0)] = 1.0
    sizes: tuple[Annotated[int, at_least(1)], ...] | None = None
    rest: dict[str, Any] = dataclasses.field(default_factory=dict)
    plain: float = -5.0


def test_a_guests_config_with_and_without_ranges():
    assert typed(Guest, {"plain": -1e9, "sizes": [1, 2], "rest": {"a": 1.5}}, "g", "f").sizes == (1, 2)
    for given, message in (
        ({"weight": -1}, "f: g.weight: expected 0 or more, got -1"),
        ({"sizes": [1, 0]}, r"f: g.sizes\[1\]: expected 1 or more, got 0"),
        ({"plain": float("nan")}, "f: g.plain: expected a finite number, got nan"),
        ({"rest": {"a": [float("inf")]}}, "f: g.rest.a: expected a finite number"),
        ({"sizes": [10**5000]}, r"f: g.sizes\[0\]: expected a whole number under 2\^63, got a int"),
    ):
        with pytest.raises(UserError, match=message):
            typed(Guest, given, "g", "f")


def test_a_config_that_fails_otherwise_is_told_with_its_class():
    @dataclass(frozen=True, kw_only=True)
    class Fails:
        weight: float = 1.0

        def __post_init__(self):
            raise KeyError("missing")

    with pytest.raises(UserError, match=r"f: g: .*Fails: KeyError: 'missing' \(.*test_ranges.py:\d+\)"):
        typed(Fails, {}, "g", "f")


def test_settings_of_an_object_are_checked_too():
    class Mine(Strategy):
        Config = Guest

    with pytest.raises(UserError, match=r"strategies.m.weight: expected 0 or more, got -1"):
        load_study({"methods": {"m": {"strategies": {"m": Mine(Guest(weight=-1))}}}})


NONSENSE = [
    ("train.max_grad_norm=-1", "train.max_grad_norm: expected 0 or more, got -1"),
    ("train.max_steps=0", "train.max_steps: expected -1 or 1 or more, got 0"),
    ("train.max_steps=-2", "train.max_steps: expected -1 or 1 or more"),
    ("train.weight_decay=-0.1", "train.weight_decay: expected 0 or more"),
    ("train.adam_beta1=1", "train.adam_beta1: expected a number in [0, 1)"),
    ("train.adam_beta2=-0.1", "train.adam_beta2: expected a number in [0, 1)"),
    ("train.adam_epsilon=0", "train.adam_epsilon: expected a number above 0"),
    ("train.num_train_epochs=1e18", "train.num_train_epochs: expected a number in (0, 1,000,000]"),
    ("train.num_threads=1000000", "train.num_threads: expected a number in [1, 1,024]"),
    ("train.learning_rate=.inf", "train.learning_rate: expected a finite number, got inf"),
    ("stream.limit.train=-1", "stream.limit.train: expected null or 1 or more, got -1"),
    ("stream.valid_size=-1", "stream.valid_size: expected a number in [0, 1,000,000]"),
    ("seeds=[-1]", "seeds: expected whole numbers in [0, 2^63), got -1"),
    ("seeds=[1000000000000000000000000000000]", "seeds: expected whole numbers in [0, 2^63)"),
    ("model.adapter.r=10000000", "model.adapter.r: expected a number in [1, 65,536]"),
    ("model.adapter.lora_dropout=1", "model.adapter.lora_dropout: expected a number in [0, 1)"),
    ("model.num_attention_heads=0", "model.num_attention_heads: expected a number in [1, 1,024]"),
    ("model.warmup.length=0", "model.warmup.length: expected a number in [1, 64]"),
    ("model.warmup.skills=[srot]", "model.warmup.skills: unknown skill 'srot'; did you mean 'sort'?"),
    ("model.warmup.skills=[]", "model.warmup.skills: is empty"),
]


@pytest.mark.parametrize(("override", "message"), NONSENSE)
def test_settings_without_meaning_are_refused(override, message):
    with pytest.raises(UserError) as error:
        load_study({}, [override])
    assert f"command line: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "settings"), [("power_law", {"exponent": -1}), ("der", {"memory_batch_size": 0}), ("der", {"alpha": -1})]
)
def test_strategies_refuse_what_does_nothing(name, settings):
    with pytest.raises(UserError, match=rf"strategies.{name}.{next(iter(settings))}: expected"):
        load_study({"strategies": {name: settings}})
