"""The first task's training, once for all methods that have it in common: they part where it is over.

A method without a past trains as sequential training does (law 1). One that sees nothing of the first task but its two ends
(`Tags.forks`, law 14) goes on from what another run has made of it: weights, losses, counts, probes. Its own hooks before and
after the task run as ever.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_toolkit.engine.schedules import needs_end
from cl_toolkit.errors import UserError
from cl_toolkit.runs import checkpoint, state
from cl_toolkit.runs.cost import COUNTS
from cl_toolkit.runs.identity import settled, without_strategies
from cl_toolkit.runs.parts import build_objective, build_strategy, parts_of
from cl_toolkit.strategy import Composed, Strategy
from cl_toolkit.types import Batches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.runs.run import Run
    from cl_toolkit.task_view import TaskView
    from cl_toolkit.types import Stream

PHASES = ("train", "curves")
"""What the first task's training takes; evaluating afterwards is for each run to do."""
FIRST, CLAIMED = "first", "claimed"
HOOKS = ("build", "before_task", "batches", "loss", "penalty", "before_step")
"""What a strategy does up to the end of a task's training."""


def key_of(config: RunConfig, stream: Stream, identity: Mapping[str, Any]) -> str | None:
    """What a run's first training is known by, as 16 hex digits; None where no other run may have it too."""
    if not stream.stages or not stream.regime.trained or stream.anchors or config.trackers:
        return None
    stage, strategy = stream.stages[0], build_strategy(config)
    objective = build_objective(stage.task.objective or config.objective)
    apart = not all(map(forks, parts_of(strategy))) or objective.cost().calls
    if apart or needs_end(config.train) or config.train.per_device_train_batch_size == "auto":
        return None
    plain = {k: v for k, v in settled(config.plain).items() if k not in ("strategies", "stream")}
    section = {k: v for k, v in config.plain["stream"].items() if k not in ("tasks", "order", "view")}
    parts = without_strategies(identity) | {"data": None}  # of the first task's alone, below
    data = identity["data"]
    first = [stage.plain(), [data[name] for name in stage.made_of], list(stream.classes), "logits" in strategy.needs]
    first += list(data.items()) if config.probes else []  # which may look at tasks to come
    place = [config.plain["engine"], config.plain["train"]["num_threads"]]  # last bits depend on them
    text = json.dumps([plain, section, parts, first, place], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def forks(part: Strategy) -> bool:
    """Whether a strategy says that it sees of the first task the two ends alone: its own class, not one that it changes."""
    kin = type(part).__mro__
    speaks = next(i for i, cls in enumerate(kin) if "tags" in vars(cls))
    return part.as_set.forks and not any(hook in vars(cls) for cls in kin[:speaks] for hook in HOOKS)


def of_run(run: Run, k: int, counted: dict[str, int]) -> Giving | Taking | None:
    """How stage k is shared: given by the first run that comes to it, taken by those after it; None: not at all. counted:
    parameters, trained and in all, for the record."""
    if k or run.shared is None or run.engine.processes.world > 1:
        return None
    key = key_of(run.config, run.stream, run.identity)
    place = run.shared / "forks" / (key or "none")
    if not place.is_dir():  # of no other run of the comparison
        return None
    if (place / FIRST).is_dir():
        try:
            return Taking(run, counted, *checkpoint.load(place / FIRST, run.examples))
        except UserError:
            return None
    try:
        (place / CLAIMED).touch(exist_ok=False)
    except FileExistsError:  # another run is at it: to wait would take as long
        return None
    return Giving(run, counted, place / FIRST)


class Giving(Composed):
    """A run's strategies, of which the first task's training is left for others when it is over."""

    def __init__(self, run: Run, counted: dict[str, int], place: Path):
        super().__init__(parts_of(run.strategy))
        self.run, self.counted, self.place = run, counted, place
        self.engine: Any = run.engine
        self.began, self.curves = run.meter.now(), self.spent("curves")
        self.cut = set(run.codec.truncated_ids)

    def spent(self, phase: str) -> tuple[float, float]:
        """Seconds of a phase so far, of the processor or the GPU and of the clock."""
        cost = self.run.record["cost"]
        return cost["compute_seconds"][phase], cost["wall_seconds"][phase]

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        run, record = self.run, self.run.record
        seen = [now - before for now, before in zip(self.spent("curves"), self.curves, strict=True)]
        whole = [now - before for now, before in zip(run.meter.now(), self.began, strict=True)]
        kept = {
            "from": f"{run.config.method}/{run.folder.name}",
            "counts": {name: record["cost"][name] for name in COUNTS},
            "seconds": {"train": [a - b for a, b in zip(whole, seen, strict=True)], "curves": seen},
            **{name: record[name] for name in ("losses", "probes")},
            "looked": {name: probe.state() for name, probe in run.probes.items()},
            "ever_trained": sorted(run.ever_trained),
            "counted": self.counted,
            "truncated": sorted(run.codec.truncated_ids - self.cut),
        }
        checkpoint.save(self.place, kept, state.saved_weights(run, model), run.examples)
        return super().after_task(model, task)


class Taking(Composed):
    """A run's strategies around a first task that another run has trained. It is their engine too, which trains nothing."""

    def __init__(self, run: Run, counted: dict[str, int], kept: dict[str, Any], weights: dict[str, Tensor]):
        super().__init__(parts_of(run.strategy))
        self.run, self.counted, self.kept_state, self.weights = run, counted, kept, weights
        self.engine: Any = self

    def open(self, model: nn.Module, task: TaskView, steps: int) -> AbstractContextManager[None]:
        """No session is needed: there are no batches."""
        return nullcontext()

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        super().batches(model, task, batches)
        return Batches(0, batches.__getitem__)

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        run, record, kept = self.run, self.run.record, self.kept_state
        model.load_state_dict(self.weights, strict=False)
        record["cost"] |= kept["counts"]
        for phase, spent in kept["seconds"].items():  # what the method costs, whoever has paid for it
            for clock, seconds in zip(("compute_seconds", "wall_seconds"), spent, strict=True):
                record["cost"][clock][phase] += seconds
        record["reused"] = {"from": kept["from"], "compute_seconds": sum(kept["seconds"][p][0] for p in PHASES)}
        record |= {name: kept[name] for name in ("losses", "probes")}
        for name, probe in run.probes.items():
            probe.load_state(kept["looked"][name])
        run.ever_trained |= set(kept["ever_trained"])
        run.codec.truncated_ids |= set(kept["truncated"])
        self.counted |= kept["counted"]
        return super().after_task(model, task)


def done_with(folder: Path) -> None:
    """Delete what was left there: weights are large."""
    shutil.rmtree(folder / "forks", ignore_errors=True)


def ask_for(folder: Path, keys: list[str | None]) -> None:
    """Have the trainings that several runs of a comparison have in common left in its folder, and no others."""
    done_with(folder)  # of a comparison that was killed
    for key in {key for key in keys if key is not None and keys.count(key) > 1}:
        (folder / "forks" / key).mkdir(parents=True, exist_ok=True)
