"""Experience replay, also of answers that the model writes itself; power-law rehearsal, which has another schedule; surprise
replay, which has another choice of what stays.

Replay: Chaudhry et al. 2019, "On Tiny Episodic Memories" (a batch of new data plus a batch of memory, losses averaged over
the union). Power law: Gandhi et al. 2024, arXiv 2401.10393; the schedule is the one of the code archana53/power-law-for-CI,
    weight(d) = ((c + d) / c)^(-a),   a = 5.6, c = 10,
for a task learned d tasks ago. That this is the schedule printed in the paper could not be confirmed.
Surprise: Hazard et al. 2025 (SuRe), arXiv 2511.22367: of each task the examples stay that have the largest
    s(x) = -1/T sum_t log p(y_t | x, y_<t),   over the T answer tokens.
That the authors take p of the model after the task, as here, and not before it could not be confirmed.
Self: as in LAMOL (Sun et al. 2020, arXiv 1909.03329) and SSR (Huang et al. 2024, arXiv 2403.01244) the model writes what is
rehearsed, before the new task begins; they let it write the questions too, we keep those and have the answers written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cl_toolkit.data.store import ExampleStore, allocate
from cl_toolkit.engine.access import evaluating
from cl_toolkit.lazy import LazyModule
from cl_toolkit.models.copies import copied
from cl_toolkit.models.logits import predicted
from cl_toolkit.models.rollouts import sampled
from cl_toolkit.ranges import SHARE, above, at_least, refuse_idle
from cl_toolkit.seeds import generator_from
from cl_toolkit.strategy import Cost, Strategy, Tags
from cl_toolkit.types import Batches, Example

if TYPE_CHECKING:
    from torch import nn

    from cl_toolkit.task_view import TaskView

torch = LazyModule("torch")


def age_weights(ages: Sequence[int], schedule: str, exponent: float = 5.6, offset: float = 10.0) -> list[float]:
    """Unnormalised weight of tasks learned `ages` tasks ago (1 is the task before). The weight of age 0 would be 1."""
    if schedule == "power_law":
        return [((offset + d) / offset) ** -exponent for d in ages]
    if schedule == "exponential":
        return [math.exp(-d / exponent) for d in ages]
    return [1.0] * len(ages)


class Replay(Strategy):
    """Rehearse stored examples of past tasks in every batch.

    Rehearsed examples come on top of the new ones, so that every method takes the same steps on the same new data. The
    cost of the extra examples is measured. The loss is averaged over the union.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """replay_fraction: share of each batch that is rehearsed, in [0, 1). replay_loss_share: how much of a step's loss the
        mean over rehearsed targets is, and the mean over new ones the rest; None: every target counts the same, so that
        longer answers carry more. source: what is rehearsed, the tasks that were trained (past), the stream's anchors
        (general: general text, say, beside every task), or both (all); or questions of the tasks that were trained, with
        answers that the model itself writes before the new task (self), the same in all of its epochs. buffer_size: stored
        examples in total; None: no limit. policy: which examples stay when the buffer is full. max_completion_length,
        temperature: of what it writes."""

        replay_fraction: Annotated[float, at_least(0).below(1)] = 0.5
        replay_loss_share: Annotated[float, SHARE] | None = None
        source: Literal["all", "past", "general", "self"] = "all"
        buffer_size: Annotated[int, at_least(0)] | None = None
        policy: Literal["reservoir", "ring", "quota"] = "reservoir"
        max_completion_length: Annotated[int, at_least(1)] = 32
        temperature: Annotated[float, above(0)] = 1.0

        def __post_init__(self) -> None:
            written = ("max_completion_length", "temperature")
            refuse_idle(self, self.source != "self", f"with source {self.source}: nothing is written", *written)
            refuse_idle(self, self.buffer_size is None, "without a buffer_size: all examples stay", "policy")

    tags = Tags(
        forks=True,
        paper="Chaudhry et al. 2019, arXiv 1902.10486",
        off={"replay_fraction": 0.0},
        cost=Cost(rows=1.0),
        extra_memory="stored examples",
        needs_examples=True,
        owns=frozenset({"rehearsal"}),
    )
    kept = ("store",)
    asked = 0  # answers of its own, by this process

    def __init__(self, config: Config | None = None):
        super().__init__(config)
        self.store = ExampleStore(self.config.buffer_size, self.config.policy)
        self.written: dict[str, Any] = {}

    @property
    def as_set(self) -> Tags:
        shared = {"token_mean"} if self.config.replay_loss_share is not None else set()
        if self.config.source != "self":
            tags = replace(self.tags, needs=self.tags.needs | shared, keeps_anchors=self.config.source != "past")
            if self.config.source != "general" or not self.stores():
                return tags
            return replace(tags, anchored=True, forks=False, exceptions={1: "anchors stand beside the first task too"})
        needs = self.tags.needs | shared | {"true_targets"}  # others would not learn from what was written
        of_model, inputs = frozenset({"generates"}), ("conversations",)
        return replace(self.tags, needs=needs, of_model=of_model, inputs=inputs, keeps_anchors=False)

    @property
    def answer_limit(self) -> tuple[str, int] | None:
        return ("max_completion_length", self.config.max_completion_length) if self.config.source == "self" else None

    def told(self) -> dict[str, Any]:
        return self.written

    @property
    def rollouts(self) -> int:
        return self.asked

    @property
    def rows(self) -> float:
        """Rehearsed rows per new one, at most."""
        return self.config.replay_fraction / (1 - self.config.replay_fraction)

    def cost(self, batch_size: int) -> Cost:
        longest = 0 if self.answer_limit is None else self.answer_limit[1]
        return Cost(rows=self.rows, written=self.rows * longest)

    def batches(self, model: nn.Module, task: TaskView, batches: Batches) -> Batches:
        groups, self.written = self.store.by_task(), {}
        if not groups or not len(self.store):
            return batches
        plan = self.plan({task.index - i: len(g) for i, g in groups.items()}, len(task.examples))
        if self.config.source == "self":
            groups = self.rewritten(model, task, groups, plan)
        if not groups or not sum(plan.values()):
            return batches
        task.memory_share = self.config.replay_loss_share
        per_epoch = -(-len(task.examples) // task.batch_size)
        drawn: dict[int, list[Example]] = {}

        def get(index: int) -> list[Example]:
            epoch, position = divmod(index, per_epoch)
            if epoch not in drawn:
                drawn.clear()
                drawn[epoch] = self.draw(task, groups, plan, epoch)
            rehearsed = drawn[epoch]
            start, stop = (len(rehearsed) * p // per_epoch for p in (position, position + 1))
            return [*batches[index], *rehearsed[start:stop]]

        return Batches(len(batches), get)

    def plan(self, sizes: Mapping[int, int], new: int) -> dict[int, int]:
        """Age -> examples rehearsed per epoch, for stored `sizes` by age and `new` examples of the current task."""
        fraction = self.config.replay_fraction
        budget = round(new * fraction / (1 - fraction))
        weights = self.weights(list(sizes))
        return dict(zip(sizes, allocate(budget, weights, list(sizes.values())), strict=True))

    def rewritten(
        self, model: nn.Module, task: TaskView, groups: Mapping[int, list[Example]], plan: Mapping[int, int]
    ) -> dict[int, list[Example]]:
        """As many stored examples of each past task as an epoch rehearses, with the answers that the model gives now. Answers
        that came to no end are left out, and others come more than once for them. How near they are to the stored ones is
        noted; nothing else looks at those."""
        generator = generator_from(task.seeds["memory"], self.name, "written", task.index)
        chosen = [
            (index, group[i])
            for index, group in groups.items()
            for i in torch.randperm(len(group), generator=generator)[: plan[task.index - index]].tolist()
        ]
        mine, settings = task.share([example for _, example in chosen]), self.config
        aside = task.keep(task.examples)  # it counts its rollouts for itself
        self.asked += len(mine)
        found = sampled(model, aside, mine, 1, settings.max_completion_length, settings.temperature, self.name)
        ended = [task.codec.said(ids) if task.codec.ended(ids) else None for (ids,) in found]
        answers = list(zip(chosen, task.gather(ended), strict=True))
        texts = [text for _, text in answers if text is not None]
        known = [example.target for group in groups.values() for example in group]
        self.written = {"cut": len(answers) - len(texts), **copied(texts, known)}
        pools: dict[int, list[Example]] = {}
        for (index, example), text in answers:
            if text is not None:
                pools.setdefault(index, []).append(replace(example, target=text))
        return pools

    def weights(self, ages: Sequence[int]) -> list[float]:
        """By default every past task gets the same share."""
        return age_weights(ages, "uniform")

    def draw(
        self, task: TaskView, groups: Mapping[int, list[Example]], plan: Mapping[int, int], epoch: int
    ) -> list[Example]:
        """The examples rehearsed in one epoch, in random order. It depends on the epoch alone, so that any batch can be
        read by its index."""
        generator = generator_from(task.seeds["memory"], self.name, "draw", task.index, epoch)
        drawn = []
        for index, group in groups.items():
            count = plan[task.index - index]
            while count > 0:
                order = torch.randperm(len(group), generator=generator)[:count].tolist()
                drawn += [replace(group[i], source="memory") for i in order]
                count -= len(order)
        return [drawn[i] for i in torch.randperm(len(drawn), generator=generator).tolist()]

    def after_task(self, model: nn.Module, task: TaskView) -> nn.Module:
        # a rehearsal that is off stores nothing and draws nothing
        wanted = ("all", "general") if task.index < 0 else ("all", "past", "self")
        if self.stores() and self.config.source in wanted:
            self.store.add(task.index, task.examples, task.generator(self.name), self.worth(model, task))
        return model

    def stores(self) -> bool:
        return self.config.replay_fraction > 0 and self.config.buffer_size != 0

    def worth(self, model: nn.Module, task: TaskView) -> Sequence[float]:
        """What each of a task's examples is worth, where that decides which of them stay."""
        return ()


class SurpriseReplay(Replay):
    """Rehearse of each past task what the model is least sure of. Every task has an equal share of the buffer, and its most
    surprising examples stay."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """As for replay; without a buffer_size everything stays and nothing is chosen. candidates: of a larger task so many
        examples are looked at, drawn at random; the others come after them."""

        replay_fraction: Annotated[float, at_least(0).below(1)] = 0.5
        replay_loss_share: Annotated[float, SHARE] | None = None
        source: Literal["all", "past", "general"] = "all"
        buffer_size: Annotated[int, at_least(0)] | None = 1000
        candidates: Annotated[int, at_least(1)] = 1000

        def __post_init__(self) -> None:
            refuse_idle(self, self.buffer_size is None, "without a buffer_size: all examples stay", "candidates")

    tags = replace(
        Replay.tags,
        paper="Hazard et al. 2025 (SuRe), arXiv 2511.22367",
        cost=Cost(rows=1.0, read_after=1000),
        needs=frozenset({"logits", "true_targets"}),
    )

    def __init__(self, config: Config | None = None):
        Strategy.__init__(self, config)
        self.store, self.written = ExampleStore(self.config.buffer_size, "worth"), {}

    def cost(self, batch_size: int) -> Cost:
        return replace(super().cost(batch_size), read_after=self.config.candidates if self.chooses() else 0)

    def chooses(self) -> bool:
        """Whether some examples stay and others do not."""
        return self.stores() and self.config.buffer_size is not None

    def worth(self, model: nn.Module, task: TaskView) -> Sequence[float]:
        if not self.chooses():
            return ()
        chosen = task.drawn(self.name, self.config.candidates)
        worth = [-1.0] * len(task.examples)  # below any -log p
        for i, value in zip(chosen, surprise(model, task, [task.examples[i] for i in chosen]), strict=True):
            worth[i] = value
        return worth


def surprise(model: nn.Module, task: TaskView, examples: Sequence[Example]) -> list[float]:
    """The mean -log p of each example's targets, in eval mode. Each process takes its share of the examples."""
    device, found = next(model.parameters()).device, list[float]()
    mine = task.share(examples)
    with evaluating(model), torch.no_grad():
        for start in range(0, len(mine), task.batch_size):
            part = task.encode(mine[start : start + task.batch_size], model).to(device)
            logp, owners = predicted(model, part, logits=False).logp, part.asked.examples
            sums = torch.zeros(len(part.examples), device=device).index_add(0, owners, -logp)
            found += (sums / torch.bincount(owners, minlength=len(sums)).clamp(min=1)).tolist()
    return task.gather(found)


class PowerLaw(Replay):
    """Rehearse a task less the longer ago it was learned. Age counts from the task's own turn; rehearsing does not reset
    it.

    `unrestricted` gives a task of age d the N (c+d)^-a / c^-a examples of the authors' code, N being the size of the
    current task: 1.62 times the current task at ten tasks, so compare it at equal volume only with care.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Replay.Config):
        """schedule: weight by age d: (c+d)^-a | exp(-d/a) | equal. exponent: a (5.6 for the power law; the authors'
        exponential has 1). offset: c. unrestricted: no budget. The rest as for replay."""

        schedule: Literal["power_law", "exponential", "uniform"] = "power_law"
        exponent: Annotated[float, at_least(0)] = 5.6
        offset: Annotated[float, above(0)] = 10.0
        unrestricted: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            refuse_idle(self, self.schedule == "uniform", "with schedule uniform", "exponent")
            refuse_idle(self, self.schedule != "power_law", f"with schedule {self.schedule}", "offset")
            refuse_idle(self, self.unrestricted, "with unrestricted: true", "replay_fraction")
            if self.schedule == "exponential" and self.exponent <= 0:
                raise ValueError(
                    f"exponent: expected a number above 0 for the exponential schedule, got {self.exponent}"
                )

    tags = replace(Replay.tags, paper="Gandhi et al. 2024, arXiv 2401.10393")

    @property
    def rows(self) -> float:
        # without a budget it grows with the number of past tasks; at the tenth task
        return sum(self.weights(range(1, 10))) if self.config.unrestricted else super().rows

    def weights(self, ages: Sequence[int]) -> list[float]:
        return age_weights(ages, self.config.schedule, self.config.exponent, self.config.offset)

    def plan(self, sizes: Mapping[int, int], new: int) -> dict[int, int]:
        if not self.config.unrestricted:
            return super().plan(sizes, new)
        return {
            age: min(size, round(new * w))
            for (age, size), w in zip(sizes.items(), self.weights(list(sizes)), strict=True)
        }
