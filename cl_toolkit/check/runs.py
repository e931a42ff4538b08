"""The smallest real runs, for checking: a one-layer model, a few examples of each skill, a fraction of a second per run."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cl_toolkit.benchmarks.skills import Skills
from cl_toolkit.config.schema import RunConfig
from cl_toolkit.measure.scorers import accuracy
from cl_toolkit.models.kind import fingerprint
from cl_toolkit.runs.events import Event, Saved
from cl_toolkit.runs.run import Run
from cl_toolkit.strategy import Strategy
from cl_toolkit.study.cells import load_run
from cl_toolkit.task_view import TaskView
from cl_toolkit.types import Batches, Example, Task

OVER_AND_OVER = 20
TASKS = ["max", "last", "sort"]
ANCHOR = "vowels"
RFT = {"name": "rft", "num_generations": 3, "max_completion_length": 4}
TINY = {"name": "tiny-lm", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class EasySkills(Skills):
    """Skills with a scorer that an untrained model satisfies about half of the time, so that rewards differ."""

    inputs = "conversations"

    def tasks(self, names: Sequence[str], prompt: object = None, repeat: bool = False) -> list[Task]:
        scorers = {ANCHOR: "perplexity"}  # what it loses shows at once
        return [
            replace(t, scorer=scorers.get(t.name, f"{__name__}:even")) for t in super().tasks(names, prompt, repeat)
        ]


class EasyPairs(EasySkills):
    """The same with an answer beside each target that it is preferred to."""

    def tasks(self, names: Sequence[str], prompt: object = None, repeat: bool = False) -> list[Task]:
        found = super().tasks(names, prompt, repeat)
        return [replace(t, train=tuple(map(preferred, t.train))) for t in found]


def preferred(example: Example) -> Example:
    """The example with a rejected answer, its target said twice."""
    return replace(example, extra={"rejected": 2 * example.target})


class EasyDocuments(EasySkills):
    """The same questions and answers as texts, each of them over and over, so that documents fill rows."""

    inputs = "documents"

    def tasks(self, names: Sequence[str], prompt: object = None, repeat: bool = False) -> list[Task]:
        def read(examples: Sequence[Example]) -> tuple[Example, ...]:
            return tuple(Example(id=e.id, text=f"{e.question} {e.target}\n" * OVER_AND_OVER) for e in examples)

        return [
            Task(name=t.name, train=read(t.train), valid=read(t.valid), test=read(t.test), scorer="perplexity")
            for t in super().tasks(names, prompt, repeat)
        ]


def stream_for(objective: Any) -> str:
    """The stream of ours that gives what an objective learns from."""
    if "rejected" in objective.reads:
        return f"{__name__}:{EasyPairs.__name__}"
    fitting = [cls for cls in (EasySkills, EasyDocuments) if cls.inputs in objective.inputs]
    return f"{__name__}:{(fitting or [EasySkills])[0].__name__}"


@accuracy
def even(example: Example, answer: str) -> float:
    """1 for an answer whose bytes add up to an even number."""
    return float(sum(answer.encode()) % 2 == 0)


class Neighbour(Strategy):
    """Stands beside the strategy that is checked: draws from a generator of its own and keeps what it drew."""

    def __init__(self, config: Any = None):
        super().__init__(config)
        self.drawn: list[float] = []

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        self.drawn += torch.rand(3, generator=task.generator(self.name)).tolist()
        return batches

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        self.drawn += torch.rand(3, generator=task.generator(self.name)).tolist()
        return model

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


NEIGHBOUR = f"{__name__}:Neighbour"


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A study's config as a dict; keyword arguments replace keys of the sections, `train={"max_steps": 2}`. In fp32, on a GPU
    too: laws look at last bits."""
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
        "train": {"max_steps": 4, "global_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1, "bf16": False},
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


def global_states() -> dict[str, object]:
    """Where the generators stand that everybody shares."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "random": random.getstate(),
        "numpy": numpy_state[1].tolist(),
    }


@contextmanager
def stirred(seed: int) -> Iterator[None]:
    """The generators that everybody shares stand somewhere else inside."""
    pythons, numpys = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(pythons)
            np.random.set_state(numpys)


def moved(before: Mapping[str, object]) -> list[str]:
    """The shared generators that no longer stand where they stood."""
    return [name for name, state in global_states().items() if state != before[name]]


class Subject:
    """What is checked, and the runs made with it.

    reference: the name or `file.py:Class` under which a config has it. thing: the class, function or object behind it.
    settings: its own, where they differ from its defaults.
    """

    def __init__(self, reference: str, thing: Any, settings: Mapping[str, Any] | None = None):
        self.reference, self.thing, self.settings = reference, thing, dict(settings or {})
        self.workplace = Path(tempfile.mkdtemp(prefix="cl-check-"))
        self.runs: dict[str, Trajectory] = {}
        self.made = 0

    @property
    def exceptions(self) -> Mapping[int, str]:
        """The laws that it breaks by design -> why."""
        return getattr(self.thing, "exceptions", {})

    def config(self, **changes: Any) -> RunConfig:
        """A tiny run with it."""
        return load_run(tiny_config(**changes))

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


class Stop(Exception):
    """The interruption."""


def stop_after(run: Run, stages: int) -> None:
    """Execute a run until its checkpoint after so many stages is on disk, and no further."""

    def stop(event: Event) -> None:
        if isinstance(event, Saved) and event.after == stages:
            raise Stop

    run.events.listeners.append(stop)
    with suppress(Stop):
        run.execute()
