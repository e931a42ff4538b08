"""How little brings an old score back: what was forgotten, or only out of reach (Zheng et al. 2025, Spurious Forgetting)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cl_toolkit.data.spread import spread
from cl_toolkit.engine.choose import open_engine
from cl_toolkit.errors import UserError, did_you_mean
from cl_toolkit.learn import learn
from cl_toolkit.measure.answers import Answers
from cl_toolkit.measure.exam import Exam
from cl_toolkit.measure.scorers import as_scorer
from cl_toolkit.models import adapters
from cl_toolkit.models.beginnings import passed
from cl_toolkit.registry import SCORERS
from cl_toolkit.runs.fit import ready
from cl_toolkit.runs.parts import build_objective
from cl_toolkit.runs.reload import Reloaded, reload
from cl_toolkit.seeds import seed_from
from cl_toolkit.strategy import compose
from cl_toolkit.task_view import TaskView

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.types import Task

SLACK = 1e-6
"""What rounding on another device may make of a score's difference, and of a perplexity's as a share."""


@dataclass(frozen=True)
class Relearned:
    """The score of an earlier task after training on so many of its examples again; 0: as it was left. learned: its score right
    after it was learned. regained: the share of what was lost that is back, None where nothing was lost."""

    task: str
    examples: int
    score: float
    learned: float
    regained: float | None

    def plain(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def relearn(
    run: Path, sizes: Sequence[int] = (1, 4, 16, 64), steps: int = 20, names: Sequence[str] = ()
) -> Iterator[Relearned]:
    """Each earlier task of a run, from its last model each time anew: trained for so many steps on a few of its own examples,
    with the run's objective and the rates of its first task and without a strategy, then scored as in the run.

    names: of the tasks; none: all but the last. Raises UserError where the weights are gone.
    """
    found = reload(run)
    if found.config.stream.then or found.stream.regime.restarts or not found.done:
        raise UserError(
            f"{found.folder}: relearn is for a model that has learned the tasks of one stream, one after the other"
        )
    record = found.record
    known = {stage["task"]: stage["row"] for stage in record["stages"][: found.done]}
    earlier = [name for name in record["tasks"] if name in known][:-1]
    for name in names:
        if name not in earlier:
            raise UserError(f"--tasks: {name} is no earlier task of {found.folder}{did_you_mean(name, earlier)}")
    bench = Bench(found, steps)
    for name in names or earlier:
        column = record["tasks"].index(name)
        task, learned = found.stream.tasks[column], record["matrix"][known[name]][column]
        left = bench.score(found.model, task)
        for size in (0, *sorted(set(sizes))):
            score = left if size == 0 else bench.score(bench.trained(task, size), task)
            yield Relearned(name, size, score, learned, regained(task, learned, left, score))


def regained(task: Task, learned: float, left: float, score: float) -> float | None:
    """The share of the loss that a score brings back; None where a task was left as good as it was learned, or better."""
    lost = learned - left
    if math.isclose(learned, left, rel_tol=SLACK, abs_tol=SLACK):  # rounding, on another device
        return None
    fell = lost > 0 if as_scorer(SCORERS.get(task.scorer, "scorer")).higher_is_better else lost < 0
    return (score - left) / lost if fell else None


class Bench:
    """Trains copies of a model, and scores them."""

    def __init__(self, found: Reloaded, steps: int):
        self.found, config = found, found.config
        self.train = replace(config.train, max_steps=steps)
        self.engine = open_engine(config.engine, self.train)
        if self.engine.processes.world > 1:
            raise UserError("relearn works in one process")
        self.codec, self.objective = found.codec(), build_objective(config.objective)
        self.answers = Answers(self.codec, config.evaluate.batch_size)
        found.model = ready(found.model, self.engine)

    def score(self, model: nn.Module, task: Task) -> float:
        """As in the last row of the run's matrix."""
        exam = Exam.of(task, self.found.config.evaluate)
        allowed = self.found.stream.allowed(self.found.record["stages"][self.found.done - 1]["row"])
        return exam.value(exam.read(self.answers(model, exam.ask(allowed))))

    def trained(self, task: Task, size: int) -> nn.Module:
        """A copy of the run's last model after some steps on that many of a task's examples, spread over it."""
        config, seed = self.found.config, self.found.config.seed
        view = TaskView(
            name=task.name,
            index=self.found.done,
            examples=tuple(spread(task.train, size)),
            objective=self.objective,
            codec=self.codec,
            batch_size=self.train.global_batch_size,
            max_steps=self.train.max_steps,
            seeds={"data": seed.data, "memory": seed.memory, "rollout": seed.rollout},
        )
        start = copy.deepcopy(self.found.model)
        examples = partial(passed, start, view)
        model = adapters.begin_task(start, config.model.adapter, self.found.done, seed.init, examples)
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(seed.data, "relearn", task.name, size))
            return learn(ready(model, self.engine), view, self.objective, compose(), self.engine, lambda session: None)
