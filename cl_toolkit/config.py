"""YAML -> plain data -> frozen dataclasses.

Defaults of the core stand once, in `configs/base.yaml`; so the dataclasses here have none. Precedence: command line,
then file, then what it `extends`, then base.yaml; nothing else sets values.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cl_toolkit.benchmarks.views import regime_of
from cl_toolkit.errors import UserError, did_you_mean, quoted, short
from cl_toolkit.plain_yaml import as_plain, read_yaml, unfilled
from cl_toolkit.ranges import SEED, SHARE, above, at_least
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, STREAMS, canonical
from cl_toolkit.strategy import Strategy
from cl_toolkit.typed import check_instance, typed
from cl_toolkit.types import Regime


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that the registry knows by name, with its settings (an instance of its `Config`)."""

    name: str
    settings: Any


@dataclass(frozen=True, kw_only=True)
class Limit:
    train: Annotated[int, at_least(1)] | None
    valid: Annotated[int, at_least(1)] | None
    test: Annotated[int, at_least(1)] | None


@dataclass(frozen=True, kw_only=True)
class StreamSection:
    name: str
    tasks: tuple[str, ...] | None
    order: tuple[str, ...] | None
    view: Literal["joint", "cumulative", "independent", "start"] | None
    scenario: Literal["task", "class"]
    anchors: tuple[str, ...]
    limit: Limit


@dataclass(frozen=True, kw_only=True)
class Prompt:
    template: str
    system: str | None
    suffix: str
    chat_template: Literal["auto", "off"]
    max_prompt_length: Annotated[int, at_least(1)]
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    thoughts: bool = False
    date: str = "2026-01-01"

    def __post_init__(self) -> None:
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date: expected a day such as '2026-01-01', got {self.date!r}") from None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA by PEFT's names, and what happens to it between tasks: one adapter trained on and on (`continue`), merged into
    the weights and started afresh (`merge`), or frozen with a new one added (`stack`)."""

    r: Annotated[int, at_least(1).up_to(65_536)] = 8
    lora_alpha: Annotated[int, at_least(1)] = 16
    lora_dropout: Annotated[float, at_least(0).below(1)] = 0.0
    target_modules: tuple[str, ...] | str = "all-linear"
    use_rslora: bool = False
    between_tasks: Literal["continue", "merge", "stack"] = "continue"


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    name: str
    adapter: Adapter | None


@dataclass(frozen=True, kw_only=True)
class Train:
    num_train_epochs: Annotated[float, above(0).up_to(1_000_000)]
    max_steps: Annotated[int, at_least(1).or_(-1)]
    global_batch_size: Annotated[int, at_least(1)]
    per_device_train_batch_size: Annotated[int, at_least(1)] | None
    learning_rate: Annotated[float, at_least(0)]
    optim: Literal["adamw_torch", "sgd"]
    weight_decay: Annotated[float, at_least(0)]
    adam_beta1: Annotated[float, at_least(0).below(1)]
    adam_beta2: Annotated[float, at_least(0).below(1)]
    adam_epsilon: Annotated[float, above(0)]
    max_grad_norm: Annotated[float, at_least(0)]
    lr_scheduler_type: str
    warmup_ratio: Annotated[float, SHARE]
    bf16: bool
    logging_steps: Annotated[int, at_least(1)]
    num_threads: Annotated[int, at_least(1).up_to(1024)]


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    name: Literal["auto", "torch", "deepspeed"]
    device: str
    deepspeed: dict[str, Any] | str | None


@dataclass(frozen=True, kw_only=True)
class Curve:
    schedule: Literal["log_spaced", "linear", "off"]
    every: Annotated[int, at_least(1)]
    examples: Annotated[int, at_least(1)]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    tasks: Literal["all", "seen"]
    split: Literal["test", "valid"]
    limit: Annotated[int, at_least(1)] | None
    batch_size: Annotated[int, at_least(1)]
    max_new_tokens: Annotated[int, at_least(1)]
    forgetting_curve: Curve


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    keep: Literal["last", "all"]


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """data: order of examples. init: fresh weights. memory: what strategies draw. rollout: what is sampled."""

    data: Annotated[int, SEED]
    init: Annotated[int, SEED]
    memory: Annotated[int, SEED]
    rollout: Annotated[int, SEED]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that one run depends on. `plain` is the same as resolved plain data, for the record."""

    name: str
    method: str
    order: str
    stream: StreamSection
    stream_settings: Any
    prompt: Prompt
    model: ModelSection
    model_settings: Any
    objective: Component
    strategies: tuple[Component, ...]
    train: Train
    engine: EngineSection
    evaluate: Evaluate
    checkpoint: Checkpoint
    seed: Seeds
    plain: dict[str, Any]

    @property
    def regime(self) -> Regime:
        """How the run goes through its tasks."""
        return regime_of(self.stream.view)

    @property
    def frozen_base(self) -> bool:
        """Whether the start model's weights stay as they are: nothing is trained, or an adapter that is never merged."""
        adapter = self.model.adapter
        return not self.regime.trained or (adapter is not None and adapter.between_tasks != "merge")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A comparison: every method x order x seed."""

    name: str
    runs: tuple[RunConfig, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    plain: dict[str, Any]


BUILT_IN_MODELS = ("tiny-lm", "mlp", "small-cnn")
COMPARISON_KEYS = ("seeds", "orders", "methods", "search")


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


def merge(below: dict[str, Any], above: Mapping[str, Any], common: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`above` over `below`. A section that gets another `name` keeps only the keys that base.yaml has for it, since the
    rest were settings of what was named before."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            named = common is not None and key in ("stream", "model", "objective")
            if named and canonical(str(value.get("name", old.get("name")))) != canonical(str(old.get("name"))):
                old = {k: v for k, v in old.items() if k in common[key]}
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def split_section(cls: type, data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a section that belong to `cls`, and the others, which belong to the named component."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}


def check_model_name(name: str, settings: Mapping[str, Any], where: str) -> None:
    """A built-in model's settings beside a name that is none: the name is to blame."""
    from cl_toolkit.models import HubModel, model_config

    if model_config(name) is not HubModel:
        return
    known = {f.name for f in dataclasses.fields(HubModel)}
    for key in settings:
        owners = [m for m in BUILT_IN_MODELS if key in {f.name for f in dataclasses.fields(model_config(m))}]
        if key not in known and owners:
            raise UserError(
                f"{where}: model.name: {quoted(name)} is a Hugging Face id or a folder, which has no setting {key} "
                f"({' and '.join(owners)} have it){did_you_mean(name, BUILT_IN_MODELS).split('; known')[0]}"
            )


def config_of(cls: Any, where: str) -> type:
    """The settings class of a stream, an objective or a strategy; a guest's must have one."""
    found = getattr(cls, "Config", None)
    if not isinstance(cls, type) or not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise UserError(f"{where}: {quoted(cls)}: expected a class with a dataclass Config in it")
    return found


def strategies_of(named: Mapping[str, Any], instances: Mapping[str, Strategy], where: str) -> tuple[Component, ...]:
    """The strategies of a run, each with its settings; of an object the object itself."""
    strategies = []
    for name, settings in named.items():
        if name in instances:
            own = as_plain(dataclasses.asdict(instances[name].config), where)
            check_instance(instances[name].config, f"strategies.{name}", where)
            if {k: v for k, v in settings.items() if k != "class"} != own:
                raise UserError(
                    f"{where}: strategies.{name}: is an object, which brings its settings itself: {quoted(own)}"
                )
            strategies.append(Component(name=name, settings=instances[name]))
            continue
        cls = STRATEGIES.get(name, f"{where}: strategies")
        if not (isinstance(cls, type) and issubclass(cls, Strategy)):
            raise UserError(f"{where}: strategies: {name} is not a strategy (a class that inherits from Strategy)")
        if not isinstance(settings, dict):
            raise UserError(f"{where}: strategies.{name}: expected settings, got {quoted(settings)}")
        config = config_of(cls, f"{where}: strategies.{name}")
        strategies.append(Component(name=name, settings=typed(config, settings, f"strategies.{name}", where)))
    return tuple(strategies)


def build_run(
    plain: dict[str, Any], where: str, *, method: str = "run", order: str = "given", instances=None
) -> RunConfig:
    """A resolved plain config -> RunConfig; refuses what cannot work, before any model is loaded."""
    from cl_toolkit import refusals
    from cl_toolkit.models import model_config

    known = base_layer()
    for key in plain:
        if key not in known:
            raise UserError(f"{where}: {short(key)}: unknown key{did_you_mean(key, known)}")
    for key in ("stream", "prompt", "model", "objective", "train", "engine", "evaluate", "checkpoint"):
        if not isinstance(plain[key], dict):
            raise UserError(f"{where}: {key}: expected a mapping, got {quoted(plain[key])}")

    for path in unfilled(plain):
        raise UserError(f"{where}: {path}: must be given; add {path}=... to the command or write it into a config")

    common, settings = split_section(StreamSection, plain["stream"])
    stream = typed(StreamSection, common, "stream", where)
    stream_cls = STREAMS.get(stream.name, f"{where}: stream.name")
    stream_settings = typed(config_of(stream_cls, f"{where}: stream.name"), settings, "stream", where)

    common, settings = split_section(ModelSection, plain["model"])
    model = typed(ModelSection, common, "model", where)
    check_model_name(model.name, settings, where)
    model_settings = typed(model_config(model.name), settings, "model", where)

    name = plain["objective"].get("name")
    objective_config = config_of(OBJECTIVES.get(name, f"{where}: objective.name"), f"{where}: objective.name")
    settings = {k: v for k, v in plain["objective"].items() if k != "name"}
    objective = Component(name=name, settings=typed(objective_config, settings, "objective", where))

    seed, parts = plain["seed"], ("data", "init", "memory", "rollout")
    run = RunConfig(
        name=str(plain["name"]),
        method=method,
        order=order,
        stream=stream,
        stream_settings=stream_settings,
        prompt=typed(Prompt, plain["prompt"], "prompt", where),
        model=model,
        model_settings=model_settings,
        objective=objective,
        strategies=strategies_of(plain["strategies"], instances or {}, where),
        train=typed(Train, plain["train"], "train", where),
        engine=typed(EngineSection, plain["engine"], "engine", where),
        evaluate=typed(Evaluate, plain["evaluate"], "evaluate", where),
        checkpoint=typed(Checkpoint, plain["checkpoint"], "checkpoint", where),
        seed=typed(Seeds, seed if isinstance(seed, dict) else dict.fromkeys(parts, seed), "seed", where),
        plain={k: v for k, v in plain.items() if k not in COMPARISON_KEYS},
    )
    refusals.check(run, where)
    return run
