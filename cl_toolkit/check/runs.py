"""The smallest real runs, for checking: a one-layer model, a few examples of each skill, a fraction of a second per run."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cl_toolkit.benchmarks.skills import Skills
from cl_toolkit.errors import UserError
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.registry import OBJECTIVES, STRATEGIES, canonical
from cl_toolkit.runs.run import Run
from cl_toolkit.strategy import Strategy
from cl_toolkit.study.cells import load_run
from cl_toolkit.types import Example, Task

OVER_AND_OVER = 20
TASKS = ["max", "last", "sort"]
RFT = {"name": "rft", "num_generations": 3, "max_completion_length": 4}
TINY = {"name": "tiny-lm", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class EasySkills(Skills):
    """Skills with a scorer that an untrained model satisfies about half of the time, so that rewards differ."""

    inputs = "conversations"

    def tasks(self, names, prompt=None, repeat=False):
        return [replace(t, scorer=f"{__name__}:even") for t in super().tasks(names, prompt, repeat)]


class EasyDocuments(EasySkills):
    """The same questions and answers as texts, each of them over and over, so that documents fill rows."""

    inputs = "documents"

    def tasks(self, names, prompt=None, repeat=False):
        def read(examples):
            return tuple(Example(id=e.id, text=f"{e.question} {e.target}\n" * OVER_AND_OVER) for e in examples)

        return [
            Task(name=t.name, train=read(t.train), valid=read(t.valid), test=read(t.test), scorer="perplexity")
            for t in super().tasks(names, prompt, repeat)
        ]


def stream_for(objective: Any) -> str:
    """The stream of ours that gives what an objective learns from."""
    fitting = [cls for cls in (EasySkills, EasyDocuments) if cls.inputs in objective.inputs]
    return f"{__name__}:{(fitting or [EasySkills])[0].__name__}"


def even(example, answer):
    """1 for an answer whose bytes add up to an even number."""
    return float(sum(answer.encode()) % 2 == 0)


class Neighbour(Strategy):
    """Stands beside the strategy that is checked: draws from a generator of its own and keeps what it drew."""

    def __init__(self, config=None):
        super().__init__(config)
        self.drawn: list[float] = []

    def batches(self, model, task, batches):
        self.drawn += torch.rand(3, generator=task.generator(self.name)).tolist()
        return batches

    def after_task(self, model, task):
        self.drawn += torch.rand(3, generator=task.generator(self.name)).tolist()
        return model

    def state(self):
        return {"drawn": self.drawn}

    def load_state(self, state):
        self.drawn = state["drawn"]


NEIGHBOUR = f"{__name__}:Neighbour"


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A study's config as a dict; keyword arguments replace keys of the sections, `train={"max_steps": 2}`."""
    config: dict[str, Any] = {
        "name": "tiny",
        "stream": {
            "name": f"{__name__}:EasySkills",
            "tasks": TASKS[:2],
            "length": 3,
            "train_size": 12,
            "valid_size": 4,
            "test_size": 6,
        },
        "model": TINY,
        "objective": {"name": "sft"},
        "strategies": {},
        "train": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1},
        "evaluate": {"max_new_tokens": 4, "forgetting_curve": {"schedule": "off"}},
    }
    for section, value in changes.items():
        both_mappings = isinstance(value, dict) and isinstance(config.get(section), dict)
        config[section] = {**config[section], **value} if both_mappings and section != "objective" else value
    return config


class Trajectory:
    """A finished run: its record, every loss, and a hash of the final weights."""

    def __init__(self, run: Run):
        self.run = run
        self.record = run.execute()
        self.losses = [row["terms"] for row in self.record["losses"]]
        self.weights = fingerprint(run.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trajectory) and (self.losses, self.weights) == (other.losses, other.weights)

    __hash__ = None  # type: ignore[assignment]  # Python's way to say that it has none

    def first_difference(self, other: Trajectory) -> str:
        """Where two trajectories part, in words."""
        for i, (mine, theirs) in enumerate(zip(self.losses, other.losses, strict=False)):
            if mine != theirs:
                return f"losses differ from step {i + 1}: {mine} against {theirs}"
        if len(self.losses) != len(other.losses):
            return f"{len(self.losses)} steps against {len(other.losses)}"
        return "the same losses, other final weights"


@dataclass
class Subject:
    """What is checked, and the runs made with it."""

    reference: str
    kind: str
    cls: Any
    workplace: Path
    objective: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Trajectory] = field(default_factory=dict)
    made: int = 0

    @property
    def is_strategy(self) -> bool:
        return self.kind == "strategy"

    @property
    def adapter(self) -> dict[str, Any] | None:
        """The adapter that the strategy needs."""
        needed = self.cls.tags.life_cycles[0] if self.is_strategy else None
        return {"r": 2, "lora_alpha": 4, "between_tasks": needed} if needed else None

    def __post_init__(self) -> None:
        needs = self.cls.tags.needs if self.is_strategy else frozenset()
        fitting = (name for name in OBJECTIVES if needs <= OBJECTIVES.get(name, "check").gives)
        self.objective = self.objective or {"name": next(fitting, next(iter(OBJECTIVES)))}

    @property
    def divisible(self) -> bool:
        """Whether a batch may be cut."""
        return (OBJECTIVES.get(self.objective["name"], "check") if self.is_strategy else self.cls).divisible

    def config(
        self, settings: dict[str, Any] | None = None, *, absent: bool = False, beside: bool = False, **changes: Any
    ):
        """A tiny run with the subject (`absent`: without it; `beside`: with a neighbour)."""
        plain = {"model": {"adapter": self.adapter}, **changes}
        if self.is_strategy:
            plain.setdefault("objective", self.objective)
            mine = {} if absent else {self.reference: settings or {}}
            plain["strategies"] = {**({NEIGHBOUR: {}} if beside else {}), **mine}
        else:
            plain.setdefault("objective", {"name": "sft"} if absent else {"name": self.reference, **(settings or {})})
            plain["strategies"] = {NEIGHBOUR: {}} if beside else {}
        stream = stream_for(OBJECTIVES.get(plain["objective"]["name"], "check"))
        plain["stream"] = {"name": stream, **plain.get("stream", {})}
        if isinstance(plain["model"], dict) and plain["model"].get("adapter") is None:
            plain["model"] = {k: v for k, v in plain["model"].items() if k != "adapter"}
        return load_run(tiny_config(**plain))

    def prepare(self, **changes: Any) -> Run:
        """A run that has not started, in a folder of its own."""
        self.made += 1
        return Run(self.config(**changes), self.workplace / str(self.made), None)

    def trajectory(self, **changes: Any) -> Trajectory:
        """A finished run; the same question is answered once."""
        key = repr(sorted(changes.items(), key=lambda item: item[0]))
        if key not in self.runs:
            self.runs[key] = Trajectory(self.prepare(**changes))
        return self.runs[key]

    def close(self) -> None:
        shutil.rmtree(self.workplace, ignore_errors=True)


def find_subject(reference: str) -> Subject:
    """A registered strategy or objective, or a class behind `module:Class` or `file.py:Class`."""
    from cl_toolkit.objective import Objective

    if ":" not in reference and canonical(reference) in OBJECTIVES.names():
        cls, kind = OBJECTIVES.get(reference, "check"), "objective"
    else:
        cls, kind = STRATEGIES.get(reference, "check"), "strategy"
        if isinstance(cls, type) and issubclass(cls, Objective):
            kind = "objective"
    wanted = Strategy if kind == "strategy" else Objective
    if not (isinstance(cls, type) and issubclass(cls, wanted)):
        raise UserError(
            f"check: {reference}: expected a class derived from cl_toolkit.Strategy or Objective, got {cls!r}"
        )
    name = reference if ":" in reference else canonical(reference)
    return Subject(name, kind, cls, Path(tempfile.mkdtemp(prefix="cl-check-")))
