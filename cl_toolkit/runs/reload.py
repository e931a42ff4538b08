"""A run's model as it was after one of its tasks, put together again from its record and a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from cl_toolkit.config.build import read_run
from cl_toolkit.data.streams import build_stream
from cl_toolkit.engine.choose import pick_device
from cl_toolkit.errors import UserError, did_you_mean
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.runs import checkpoint, state
from cl_toolkit.runs.fit import codec_of, first_inputs
from cl_toolkit.runs.parts import build_objective, build_strategy
from cl_toolkit.runs.record import find_run, read_record
from cl_toolkit.runs.warmup import start_model

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.config.schema import RunConfig
    from cl_toolkit.strategy import Strategy
    from cl_toolkit.types import Stream


@dataclass
class Reloaded:
    """A run's model in eval mode, on the CPU, and what it was made by. done: stages that it has learned. The
    rest is what `state` knows a run by."""

    folder: Path
    config: RunConfig
    record: dict[str, Any]
    stream: Stream
    strategy: Strategy
    model: nn.Module
    done: int
    start_names: frozenset[str]
    ever_trained: set[str] = field(default_factory=set)
    base_in_bf16: ClassVar[bool] = False  # it is read and exported as it was loaded

    @property
    def after(self) -> str:
        """The task that it has learned last; "" for the start model."""
        return self.record["stages"][self.done - 1]["task"] if self.done else ""

    def codec(self) -> Any:
        """How examples become tensors for it."""
        return codec_of(self.config, self.stream)

    def inputs(self) -> dict[str, Any]:
        """The first prompts of its stream, by which it is seen whether a change of its form changes what it says."""
        return first_inputs(self.codec(), self.stream.tasks[0])


def reload(folder: Path, after: str | None = None) -> Reloaded:
    """The model after a task; None: after the last one. Raises UserError where its weights are gone, or where what the run was
    made of is no longer there."""
    pick_device("auto")  # which tells DeepSpeed where there is no GPU; PEFT imports it, and it would complain
    folder = find_run(folder)
    record = _record(folder)
    config = _config(record, folder)
    place = _place(folder, record, after)
    stream = build_stream(config)
    model = start_model(config.kind, config.seed.init, config.frozen_base, stream.classes)
    model = build_objective(config.objective).equip(model, config.seed.init)
    if fingerprint(model) != record["provenance"]["model_hash"]:
        raise UserError(f"{folder}: started from another model than model.name: {config.kind.name} gives today")
    names = frozenset(model.state_dict())
    found = Reloaded(folder, config, record, stream, build_strategy(config), model, 0, names)
    if place is not None:
        kept, weights = checkpoint.load(place)
        found.done, found.ever_trained = kept["done"], set(kept["ever_trained"])
        state.put_back(found, found.done, weights, str(place))
    found.model.eval()
    return found


def _record(folder: Path) -> dict[str, Any]:
    """The record of a run; of one that is not over that in its newest checkpoint."""
    record = read_record(folder / "record.json") if (folder / "record.json").is_file() else None
    newest = checkpoint.newest(folder / "checkpoints")
    if (record is None or record["status"] == "failed") and newest is not None:
        return checkpoint.load(newest)[0]["record"]
    if record is None or record["status"] == "failed":
        raise UserError(f"{folder}: the run has not finished a task; `cl-toolkit run` with its config goes on")
    return record


def _config(record: dict[str, Any], folder: Path) -> RunConfig:
    """The config of a record. A strategy that was given as an object is named by its class. It has run, so that it is not
    judged again: what is refused today may have been taken then."""
    plain = dict(record["config"])
    named = {(s or {}).get("class", name): s for name, s in plain["strategies"].items()}
    plain["strategies"] = {name: {k: v for k, v in (s or {}).items() if k != "class"} for name, s in named.items()}
    return read_run(plain, str(folder), method=record["method"], order=record["order"])


def _place(folder: Path, record: dict[str, Any], after: str | None) -> Path | None:
    """The checkpoint after a task; None for the start model of a run without training."""
    stages = [stage["task"] for stage in record["stages"]]
    if not stages and after is None:
        return None
    if after is not None and after not in stages:
        raise UserError(f"--after {after}: no such task in {folder}{did_you_mean(after, stages)}")
    done = len(stages) if after is None else max(i for i, name in enumerate(stages, 1) if name == after)
    place = folder / "checkpoints" / f"task-{done}"
    if (place / checkpoint.SUMS).is_file():
        return place
    newest = checkpoint.newest(folder / "checkpoints")
    reached = 0 if newest is None else int(newest.name.removeprefix("task-"))
    if record["status"] != "finished" and reached < done:
        raise UserError(
            f"{folder}: {stages[done - 1]} is not learned yet ({reached} of {len(stages)} tasks are); repeat the command that "
            f"began the run{', or name a task by --after' if after is None else ''}"
        )
    raise UserError(
        f"{folder}: the weights after {stages[done - 1]} are gone: a run keeps its last checkpoint, a comparison none, unless "
        "checkpoint.keep=all is set; run it again with that and another --out"
    )
