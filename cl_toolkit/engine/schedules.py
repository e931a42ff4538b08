"""Learning rates: of one stage, or over a whole stream.

Transformers' schedules by their names, and the infinite one of Ibrahim et al. 2024, arXiv 2403.08763, and Singh et al. 2025,
arXiv 2503.02844: with N the steps of a phase and n the step in it, the rate is
    max n / N                                              while it warms up,
    const + (max - const) (1 + cos(pi n / N)) / 2          while it cools down,
    const                                                  as long as there is data,
    const (min / const)^(n / N)                            while it is annealed.
To warm up again with each task (2403.08763's other arm) is what a schedule with a warm-up does that begins anew in each stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cl_toolkit.lazy import LazyModule
from cl_toolkit.ranges import SHARE, above, refuse_idle

if TYPE_CHECKING:
    import torch

    from cl_toolkit.engine.sections import Train
else:
    torch = LazyModule("torch")

TO_AN_END = ("cosine", "cosine_with_restarts", "linear", "polynomial")
"""Transformers' schedules that must know where they end; the others go on as long as there is data."""


@dataclass(frozen=True)
class Standing:
    """Where a stage stands among those that go on from one model. done: the optimizer steps of each stage before it. later: of
    all after it, as planned; 0 for the last one, and where the schedule does not ask."""

    done: tuple[int, ...] = ()
    later: int = 0


ALONE = Standing()
"""A stage with none before it and none after it."""


@dataclass(frozen=True, kw_only=True)
class Infinite:
    """The settings of the schedule `infinite` (`train.lr_scheduler_kwargs`); the defaults are ours.

    cooldown_ratio: of the steps that `warmup_ratio` is of, those in which the rate falls to the constant one. constant,
    minimum: rates, as shares of the peak. anneal_ratio: of the last stage's steps, the last ones, in which the rate goes to the
    minimum, from wherever it is. anneal_stages: each stage ends so, not only the stream; the next one begins at the constant
    rate, and with the annealed model, where the papers go back to the one before.
    """

    cooldown_ratio: Annotated[float, SHARE] = 0.25
    constant: Annotated[float, above(0).up_to(1)] = 0.5
    anneal_ratio: Annotated[float, SHARE] = 0.1
    minimum: Annotated[float, above(0).up_to(1)] = 0.1
    anneal_stages: bool = False

    def __post_init__(self) -> None:
        if self.minimum > self.constant:
            raise ValueError(f"minimum: expected constant ({self.constant}) or less, got {self.minimum}")
        if self.anneal_stages and not self.anneal_ratio:
            raise ValueError("anneal_stages: true does nothing: anneal_ratio is 0")
        falls = self.constant == 1 and self.cooldown_ratio > 0  # none is what there is then
        refuse_idle(self, falls, "with constant 1: the rate has nowhere to fall", "cooldown_ratio")
        refuse_idle(self, not self.anneal_ratio, "with anneal_ratio 0: nothing is annealed", "minimum")

    def rates(self, warmup_ratio: float, steps: int, standing: Standing) -> Callable[[int], float]:
        """The share of the peak at each step, counted from the first stage's first."""
        first = standing.done[0] if standing.done else steps
        warmup, cooldown = (round(ratio * first) for ratio in (warmup_ratio, self.cooldown_ratio))
        end = sum(standing.done) + steps
        annealed = 0 if standing.later and not self.anneal_stages else round(self.anneal_ratio * steps)

        def on(step: int) -> float:
            if step < warmup:
                return step / warmup
            if step < warmup + cooldown:
                wave = (1 + math.cos(math.pi * (step - warmup) / cooldown)) / 2
                return self.constant + (1 - self.constant) * wave
            return self.constant

        def rate(step: int) -> float:
            start = end - annealed
            if step <= start or not (begun := on(start)):
                return on(step)
            return begun * (self.minimum / begun) ** ((step - start) / annealed)

        return rate


OURS = {"infinite": Infinite}
"""Schedules that transformers does not have, by the class of their settings."""
SCHEDULES = tuple(sorted((*TO_AN_END, *OURS, "constant", "constant_with_warmup", "inverse_sqrt")))


def settings(train: Train) -> Infinite | None:
    """Those of a schedule of ours; None: it is transformers'."""
    own = OURS.get(train.lr_scheduler_type)
    return (train.lr_scheduler_kwargs or own()) if own else None


def needs_end(train: Train) -> bool:
    """Whether the rates of a stage depend on the stages that come after it."""
    if train.lr_over == "stage":
        return False
    if own := settings(train):
        return own.anneal_ratio > 0 and not own.anneal_stages
    return train.lr_scheduler_type in TO_AN_END


def peak(train: Train, index: int) -> float:
    """What the rates of a stage are multiplied by; index: its own, from 0."""
    given = train.lr_per_stage
    if given is None:
        return 1.0
    return given**index if isinstance(given, int | float) else given[min(index, len(given) - 1)]


def rates(train: Train, steps: int, standing: Standing = ALONE) -> Callable[[int], float]:
    """The multiple of `train.learning_rate` at each step of a stage of so many, counted from 0."""
    over = standing if train.lr_over == "stream" else ALONE
    before, top = sum(over.done), peak(train, len(standing.done))
    if own := settings(train):
        rate = own.rates(train.warmup_ratio, steps, over)
    else:
        rate = by_transformers(train, over.done[0] if over.done else steps, before + steps + over.later)
    return lambda step: top * rate(before + step)


def by_transformers(train: Train, first: int, total: int) -> Callable[[int], float]:
    """Transformers' schedule over so many steps, warmed up for a share of the `first`."""
    from transformers import get_scheduler

    # it gives rates only to an optimizer, whose own rate one of them reads
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=train.learning_rate)
    warmup = round(train.warmup_ratio * first)
    made: Any = get_scheduler(train.lr_scheduler_type, stand_in, num_warmup_steps=warmup, num_training_steps=total)
    return made.lr_lambdas[0]
