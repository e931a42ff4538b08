"""What one run and a comparison depend on. Defaults of the core stand once, in `configs/base.yaml`, not here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cl_toolkit.data.regimes import regime_of
from cl_toolkit.data.sections import StreamSection
from cl_toolkit.engine.sections import EngineSection, Train
from cl_toolkit.measure.sections import Evaluate
from cl_toolkit.models.kind import Kind
from cl_toolkit.models.sections import Generation, ModelSection, Prompt
from cl_toolkit.ranges import SEED, at_least
from cl_toolkit.types import Regime


@dataclass(frozen=True, kw_only=True)
class Component:
    """Something that the registry knows by name, with its settings (an instance of its `Config`)."""

    name: str
    settings: Any


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
    """All that one run depends on. kind: the start model. then: the same run with
    a stream and an objective of `stream.then` in place of its own. plain: the same as resolved plain data, for the record."""

    name: str
    method: str
    order: str
    stream: StreamSection
    stream_settings: Any
    prompt: Prompt
    model: ModelSection
    kind: Kind
    objective: Component
    strategies: tuple[Component, ...]
    train: Train
    engine: EngineSection
    generation: Generation
    evaluate: Evaluate
    probes: tuple[Component, ...]
    checkpoint: Checkpoint
    trackers: tuple[Component, ...]
    seed: Seeds
    plain: dict[str, Any]
    then: tuple[RunConfig, ...] = ()

    @property
    def regime(self) -> Regime:
        """How the run goes through its tasks."""
        return regime_of(self.stream.view)

    @property
    def frozen_base(self) -> bool:
        """Whether the start model's weights stay as they are: nothing is trained, or an adapter that is never merged."""
        adapter = self.model.adapter
        return not self.regime.trained or (adapter is not None and adapter.between_tasks != "merge")


Equal = Literal["steps", "new_examples", "rows", "tokens", "passes"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """equal: what every method gets as much of as the comparison's own settings give; `cl_toolkit.study.budget` makes of it how
    many steps a method takes. null: each trains as long as its settings say."""

    equal: Equal | None


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial of a search. metrics: means over its task orders; none where it failed. seconds: of computing."""

    values: dict[str, Any]
    metrics: dict[str, float]
    seconds: Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class ChosenMethod:
    """A searched method. values: the chosen ones; null where every trial failed and the config's own settings are used."""

    values: dict[str, Any] | None
    trials: tuple[Tried, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The section `chosen`: how the settings of a comparison were chosen, as `cl-toolkit tune` writes it and the report shows.

    stream_of: the config whose stream they were chosen on; null: the comparison's own. stream, tasks, orders, split, seed: of
    the trials. rule: in words. unit: of seconds. remarks: what else must be known, in sentences.
    """

    rule: str
    stream_of: str | None
    stream: str
    tasks: tuple[str, ...]
    orders: tuple[str, ...]
    split: str
    seed: Annotated[int, SEED]
    unit: str
    remarks: tuple[str, ...]
    methods: dict[str, ChosenMethod]


LauncherName = Literal["processes", "slurm", "local", "ray"]


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Who runs the runs of a comparison (`cl_toolkit.study.launchers`). name: processes of this machine, jobs that submitit
    hands to Slurm, or to its stand-in on this machine (local), or tasks of Ray. parameters: of a run there, by submitit's or
    Ray's names."""

    name: LauncherName
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A comparison: every method x order x seed."""

    name: str
    runs: tuple[RunConfig, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    launcher: Launcher
    plain: dict[str, Any]


COMPARISON_KEYS = ("seeds", "orders", "methods", "budget", "launcher", "search", "chosen")
