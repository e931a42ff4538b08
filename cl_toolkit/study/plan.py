"""What a comparison will do and what it will about cost, without loading a model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cl_toolkit.config.schema import RunConfig
from cl_toolkit.data.spread import spread
from cl_toolkit.errors import UserError
from cl_toolkit.registry import OBJECTIVES
from cl_toolkit.runs.fit import check_fit, codec_of
from cl_toolkit.study.compare import run_name
from cl_toolkit.types import Example, Stream

LOOKED_AT = 64
"""Of each task so many examples say how long a row is."""
LONG = 50_000
"""Characters of text, after which no more documents are looked at."""
STEP_OVERHEAD = 0.012
"""Seconds per optimizer step that do not depend on the model's size; measured on a small model on one CPU core."""
SAMPLED = 0.22
"""What the call of a model for one sampled token takes of that overhead."""
ADAM_BYTES = 16
"""Bytes per trained fp32 parameter: weight, gradient, two moments."""


@dataclass(frozen=True)
class Forecast:
    """One run: optimizer steps, tokens through the model, seconds, bytes of weights and optimizer state (activations come
    on top)."""

    run: str
    steps: int
    tokens: int
    seconds: float
    memory_bytes: int


def fitting(config: RunConfig, stream: Stream) -> list[str]:
    """What has to be said of model and examples before training; raises UserError for what cannot work."""
    config.kind.check(config.model.adapter, config.frozen_base)
    return check_fit(codec_of(config, stream), stream, config)


def parameters(config: RunConfig, stream: Stream) -> tuple[int, int]:
    """(all, trained) parameters, counted on a model without memory."""
    import torch

    from cl_toolkit.models import adapters

    def bare() -> Any:
        model = config.kind.skeleton(stream.classes)
        return OBJECTIVES.get(config.objective.name, "objective.name")(config.objective.settings).equip(model, 0)

    with torch.device("meta"):
        model = bare()
        total = sum(p.numel() for p in model.parameters())
        try:
            model = adapters.begin_task(model, config.model.adapter, 0, 0)
        except UserError:  # some types of adapters look at the weights; these are as memory happens to be
            model = bare().to_empty(device="cpu")
            with torch.device("cpu"):
                model = adapters.begin_task(model, config.model.adapter, 0, 0)
    return total, sum(p.numel() for p in model.parameters() if p.requires_grad)


def flops_per_second(device: Any) -> float:
    """Measured on the spot with small matrices, as small models see it."""
    import torch

    a = torch.randn(512, 512, device=device)
    (a @ a).sum().item()
    started, rounds = time.perf_counter(), 0
    while time.perf_counter() - started < 0.1:
        (a @ a).sum().item()
        rounds += 1
    return rounds * 2 * 512**3 / (time.perf_counter() - started)


def looked_at(examples: Sequence[Example]) -> list[Example]:
    """A few of a task's examples, spread over it: fewer where they are long texts."""
    found, size = [], 0
    for example in spread(examples, LOOKED_AT):
        if size > LONG:
            break
        found.append(example)
        size += len(example.text or "")
    return found


def forecast(config: RunConfig, stream: Stream, counted: tuple[int, int], rate: float) -> Forecast:
    """About what one run costs: per parameter and token 2 floating-point operations of a forward and 4 of a backward, and an
    overhead per step, of what the objective and the strategies say that they do."""
    from cl_toolkit.runs.parts import build_objective, build_strategy

    train, total, trained = config.train, *counted
    kept = build_strategy(config).cost(train.global_batch_size)
    codec = codec_of(config, stream)
    steps, tokens, passed, calls = 0, 0, 0.0, 0.0
    for stage in stream.stages:
        task, objective = stage.task, build_objective(stage.task.objective or config.objective)
        cost = objective.cost() + kept
        some = looked_at(task.train)
        units = objective.units(codec, some)
        per_epoch = math.ceil(len(units) * len(task.train) / len(some) / train.global_batch_size)
        here = max(1, round(per_epoch * train.num_train_epochs))
        if train.max_steps > 0:
            here = train.max_steps * stage.tasks_at_once
        rows = [codec.batch([e]) for e in spread(units, LOOKED_AT)]
        length = fmean(int(row.lengths) if row.along_tokens else 1 for row in rows)
        afterwards = min(cost.after_task, len(task.train))
        new = here * train.global_batch_size * objective.copies * length
        steps += here
        tokens += round(new * (1 + cost.rows))
        passed += new * (6 * (1 + cost.rows) + 2 * cost.forwards + 4 * cost.backwards) + 6 * afterwards * length
        calls += here * (1 + SAMPLED * cost.calls) + afterwards
    seconds = passed * total / rate + calls * STEP_OVERHEAD
    return Forecast(run_name(config), steps, tokens, seconds, total * 4 + trained * (ADAM_BYTES - 4))
